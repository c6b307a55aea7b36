"""Networks, classifiers and settings that the tests of probes share."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from toy import toy_network

from lit_kd.callbacks import OnlineLinearProbe
from lit_kd.methods import Classifier

DATA: dict[str, Any] = {"batch_size": 10, "val_fraction": 0.2, "eval_batch_size": 7}
standing_still = partial(torch.optim.SGD, lr=0.0)


def norm_network() -> nn.Sequential:
    """With batch norm and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )


def probe(**settings: Any) -> OnlineLinearProbe:
    return OnlineLinearProbe(**{"network": "network", "layer": "2", **settings})


def classifier(network: nn.Module | None = None, **settings: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(network or toy_network(), 3, **settings)


def with_words(module: Classifier, words: int = 5) -> Classifier:
    module.register_buffer("words", torch.rand(words, 4))
    return module


class NoLabels(Classifier):
    """Learns without them, so they may be anything."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None: ...

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["image"]).square().mean()
