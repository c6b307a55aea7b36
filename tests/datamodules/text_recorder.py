"""A module that keeps what text data modules give it, and corpora to feed it with."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from toy import quiet_trainer

Seen = tuple[list[int], list[list[int]]]


class Recorder(LightningModule):
    """Trains one weight, with noise, by what it sees; raises before the step `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.stop_at = stop_at
        self.seen: list[Seen] = []
        self.evaluated: dict[int, list[Seen]] = {}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append((batch["index"].tolist(), batch["input_ids"].tolist()))
        return self.weight * (batch["input_ids"] * batch["attention_mask"]).float().mean() / 100

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluated.setdefault(dataloader_idx, []).append((batch["index"].tolist(), batch["input_ids"].tolist()))

    test_step = validation_step

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return batch["index"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def straight_and_resumed(
    build: Any, folder: Path, stop_at: int, **settings: Any
) -> tuple[Recorder, Recorder, Recorder]:
    """A straight run, one that is stopped in the step after `stop_at`, and one that goes on from there."""
    straight, first, rest = Recorder(), Recorder(stop_at), Recorder()
    quiet_trainer(**settings).fit(straight, build())
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    stopped = quiet_trainer(**{**settings, "callbacks": [keep], "enable_checkpointing": True})
    with suppress(KeyboardInterrupt, SystemExit):  # some versions of Lightning leave by the one, some by the other
        stopped.fit(first, build())
    quiet_trainer(**settings).fit(rest, build(), ckpt_path=folder / f"step={stop_at}.ckpt")
    return straight, first, rest


def words(count: int) -> list[str]:
    """Texts of lengths between 1 and 17 characters, all different."""
    return [f"{i}" + "x" * (7 * i % 14) for i in range(count)]


def corpus(folder: Path, texts: Sequence[str], name: str = "texts.txt") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(texts) + "\n")
    return str(folder / name)


def indices(loader: Any) -> list[int]:
    return [index for batch in loader for index in batch["index"].tolist()]
