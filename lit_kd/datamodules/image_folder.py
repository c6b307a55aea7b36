"""Any folder of images, streamed from disk through loader processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from lit_kd.datamodules.augment import counter_bits
from lit_kd.datamodules.base import ImageDataModule, Split
from lit_kd.datamodules.decoding import decode_image
from lit_kd.datamodules.loading import ImageSet


class FolderImages(ImageSet):
    """Images decoded when asked for, transformed one by one and stacked as uint8."""

    def __init__(self, folder: Path, image_size: int, augment: bool, seed: int) -> None:
        """List the images.

        Args:
            folder: Folder with one folder of images a class; a class may be empty.
            image_size: Height and width after the transform, pixels.
            augment: Random resized crop and flip where a batch holds `visit`; else resize and centre crop.
            seed: Seed of the augmentation.
        """
        listing = datasets.ImageFolder(str(folder), allow_empty=True)
        super().__init__(torch.tensor(listing.targets, dtype=torch.int64), listing.classes)
        self.paths = [path for path, _ in listing.samples]
        self.seed = seed
        self.eval_transform = v2.Compose([v2.Resize(round(image_size * 256 / 224)), v2.CenterCrop(image_size)])
        self.train_transform = self.eval_transform
        if augment:
            self.train_transform = v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip()])

    def images(self, index: Tensor, visit: Tensor | None) -> Tensor:
        """Decode and transform the images at the positions `index`."""
        if visit is None:
            return torch.stack([self.eval_transform(self._decode(i)) for i in index.tolist()])
        seeds = counter_bits(self.seed, visit, index, slots=1)[:, 0]
        images = []
        # torchvision draws from the global generator: seed it for each sample, so that its view depends on
        # (seed, visit, index) alone, and put it back.
        with torch.random.fork_rng(devices=[]):
            for i, seed in zip(index.tolist(), seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)
                images.append(self.train_transform(self._decode(i)))
        return torch.stack(images)

    def _decode(self, position: int) -> Tensor:
        path = self.paths[position]
        return torch.from_numpy(decode_image(Path(path).read_bytes(), path)).permute(2, 0, 1)


class ImageFolderDataModule(ImageDataModule):
    """Images in `root/train/<class>/` and `root/test/<class>/`, or `root/val/<class>/` if there is no `test/`.

    The loader processes decode and augment: let `num_workers` be near the number of cores.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    crop_padding = 0
    flip = False

    def __init__(self, *, root: str | Path = "data/images", image_size: int = 224, **settings: Any) -> None:
        """Check the arguments; folders are listed in `setup`.

        Args:
            root: Folder with `train/` and `test/` or `val/`, which must hold the same classes.
            image_size: Height and width of the network's input, pixels.
            **settings: Arguments of `ImageDataModule`. Training images get a random resized crop and a flip;
                others are resized to 256/224 of `image_size` and cropped in the middle.

        Raises:
            FileNotFoundError: If `root` lacks these folders.
            ValueError: As `ImageDataModule`; in `setup`, if the classes differ; in a step, if a file is no
                image.
        """
        root = str(root)  # a plain string in the checkpoint: weights_only loading refuses paths
        super().__init__(**settings)
        if image_size < 1:
            raise ValueError(f"image_size={image_size} must be at least 1.")
        self.root = Path(root)
        self.image_size = image_size

    @property
    def num_classes(self) -> int:
        """Number of folders in `root/train`."""
        return len(self._classes("train"))

    def load(self, split: Split) -> FolderImages:
        """List the files of one split."""
        train, test = self._classes("train"), self._classes("test")
        if train != test:
            raise ValueError(
                f"{self._folder('train')} and {self._folder('test')} must hold the same classes: only the "
                f"first has {sorted(train - test)}, only the second has {sorted(test - train)}."
            )
        return FolderImages(self._folder(split), self.image_size, self.augment, self.seed)

    def _folder(self, split: Split) -> Path:
        folder = self.root / split
        if split == "test" and not folder.is_dir():
            folder = self.root / "val"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"root={self.root} has no folder {folder.name}/: it needs train/ and test/ or val/."
            )
        return folder

    def _classes(self, split: Split) -> set[str]:
        return {entry.name for entry in self._folder(split).iterdir() if entry.is_dir()}
