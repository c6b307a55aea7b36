"""Small things that many tests need."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_kd.datamodules import ImageDataModule
from lit_kd.datamodules.loading import InMemoryImages


class ToyImages(ImageDataModule):
    """Three classes of 8x8 images, each brighter in its own channel; 60 to train on, 31 to test with."""

    image_size = 8
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    crop_padding, flip = 1, True
    num_classes = 3

    def load(self, split: str) -> InMemoryImages:
        size = 60 if split == "train" else 31
        generator = torch.Generator().manual_seed(size)
        labels = torch.arange(size) % 3
        pixels = torch.randint(0, 160, (size, 3, 8, 8), dtype=torch.uint8, generator=generator)
        pixels[torch.arange(size), labels] += 60
        return InMemoryImages(pixels, labels, ["red", "green", "blue"])


def toy_network(width: int = 4, num_classes: int = 3, dropout: float = 0.0) -> nn.Sequential:
    """A convolution, ReLU, pooling and a classifier, no batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(width, num_classes),
    )


def quiet_trainer(**settings: Any) -> Trainer:
    """A CPU trainer that writes and shows nothing."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **settings})


def fit(module: LightningModule, data: ImageDataModule | None = None, **settings: Any) -> Trainer:
    """Fit on toy images; the trainer."""
    trainer = quiet_trainer(**{"max_epochs": 1, **settings})
    trainer.fit(module, datamodule=data or ToyImages(batch_size=10))
    return trainer


def weights(module: nn.Module) -> Tensor:
    """All parameters in one vector, a copy."""
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()
