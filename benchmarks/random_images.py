"""Random pixels in the place of files."""

from __future__ import annotations

from typing import Any

import torch

from lit_kd.datamodules import ImageDataModule
from lit_kd.datamodules.base import Split
from lit_kd.datamodules.loading import InMemoryImages


class RandomImages(ImageDataModule):
    """Square images of ten classes, uint8 in memory; of 32 pixels they stand for CIFAR-10."""

    num_classes = 10
    image_size = 32
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(self, *, pixels: int = 32, samples: int = 50_000, **settings: Any) -> None:
        """Take also the arguments of ``ImageDataModule``."""
        super().__init__(**settings)
        self.pixels, self.samples = pixels, samples

    def load(self, split: Split) -> InMemoryImages:
        """Draw them by the seed."""
        shape = (self.samples, 3, self.pixels, self.pixels)
        generator = torch.Generator().manual_seed(self.seed)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return InMemoryImages(pixels, torch.arange(self.samples) % 10, [str(i) for i in range(10)])
