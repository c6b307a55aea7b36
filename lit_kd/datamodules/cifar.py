"""CIFAR-10 and CIFAR-100, from torchvision's files or from folders or zip archives of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torchvision import datasets

from lit_kd.datamodules.base import ImageDataModule, Split
from lit_kd.datamodules.decoding import read_class_folders
from lit_kd.datamodules.loading import InMemoryImages


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10 (Krizhevsky, 2009) in memory: 50,000 + 10,000 images of 32x32 in 10 classes."""

    dataset_class: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10
    num_classes = 10
    image_size = 32
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(self, *, root: str | Path = "data/cifar10", download: bool = False, **settings: Any) -> None:
        """Check the arguments; the files are read in `setup`.

        Args:
            root: Folder that holds `train/` and `test/` with a folder of images a class, or `train.zip` and
                `test.zip` of the same, or the python version as unpacked by torchvision, whose md5 are
                verified.
            download: Let torchvision fetch the python version if `root` holds none of these.
            **settings: Arguments of `ImageDataModule`. Training images are padded by 4, cropped and flipped.

        Raises:
            FileNotFoundError: In `setup`, if `root` holds none of these.
            ValueError: As `ImageDataModule`; in `setup`, if a file is damaged or the number of classes
                differs.
        """
        root = str(root)  # a plain string in the checkpoint: weights_only loading refuses paths
        super().__init__(**settings)
        self.root = Path(root)
        self.download = download

    def prepare_data(self) -> None:
        """Download once a node, if asked and needed."""
        if self.download and not any(self._class_folders(split) for split in ("train", "test")):
            self.dataset_class(str(self.root), download=True)

    def load(self, split: Split) -> InMemoryImages:
        """Read one split into memory."""
        source = self._class_folders(split)
        images = read_class_folders(source, type(self).image_size) if source else self._read_python_version(split)
        if len(images.class_names) != self.num_classes:
            raise ValueError(
                f"{source or self.root} holds {len(images.class_names)} classes where {type(self).__name__} "
                f"needs {self.num_classes}: use ImageFolderDataModule for other sets."
            )
        return images

    def _class_folders(self, split: Split) -> Path | None:
        candidates = (self.root / split, self.root / f"{split}.zip")
        return next((path for path in candidates if path.exists()), None)

    def _read_python_version(self, split: Split) -> InMemoryImages:
        folder = self.root / self.dataset_class.base_folder
        if not folder.is_dir():
            raise FileNotFoundError(
                f"root={self.root} holds neither {split}/, {split}.zip nor {folder.name}/: correct root or "
                "set download=True."
            )
        try:
            dataset = self.dataset_class(str(self.root), train=split == "train")
        except RuntimeError as error:
            raise ValueError(f"{folder} fails torchvision's checksums: remove it and set download=True.") from error
        pixels = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
        return InMemoryImages(pixels, torch.tensor(dataset.targets), dataset.classes)


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100 (Krizhevsky, 2009) in memory: 50,000 + 10,000 images of 32x32 in 100 classes."""

    dataset_class = datasets.CIFAR100
    num_classes = 100
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    def __init__(self, *, root: str | Path = "data/cifar100", **settings: Any) -> None:
        """Take the arguments of `CIFAR10DataModule`.

        Args:
            root: Folder as there, of CIFAR-100.
            settings: See `CIFAR10DataModule`.
        """
        super().__init__(root=root, **settings)
