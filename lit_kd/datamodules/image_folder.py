"""Any folder of images, streamed from disk through loader processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from lit_kd.checks import check_whole, check_whole_or_none
from lit_kd.datamodules.augment import counter_bits
from lit_kd.datamodules.base import ImageDataModule, Split
from lit_kd.datamodules.decoding import decode_image
from lit_kd.datamodules.loading import Batch, ImageSet


class FolderImages(ImageSet):
    """Images decoded when asked for, transformed one by one and stacked as uint8."""

    def __init__(
        self, folder: Path, image_size: int, augment: bool, seed: int, resize: int, canvas_size: int | None = None
    ) -> None:
        """List the images.

        Args:
            folder: Folder with one folder of images a class; a class may be empty.
            image_size: Height and width after the transform, pixels.
            augment: Random resized crop and flip where a batch holds `visit`; else resize and centre crop.
            seed: Seed of the augmentation.
            resize: Short side before the centre crop, pixels.
            canvas_size: Where a batch holds `visit`, images come whole, as `on_canvas` puts them; None: transformed.
        """
        listing = datasets.ImageFolder(str(folder), allow_empty=True)
        super().__init__(torch.tensor(listing.targets, dtype=torch.int64), listing.classes)
        self.paths = [path for path, _ in listing.samples]
        self.seed = seed
        self.canvas_size = canvas_size
        self.eval_transform = v2.Compose([v2.Resize(resize), v2.CenterCrop(image_size)])
        self.train_transform = self.eval_transform
        if augment:
            self.train_transform = v2.Compose([v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip()])

    def __getitem__(self, key: Batch) -> Batch:
        """As other sets; images on a canvas come with their `size`, int64 (B, 2)."""
        if self.canvas_size is None or "visit" not in key:
            return super().__getitem__(key)
        image, size = on_canvas([self._decode(i) for i in key["index"].tolist()], self.canvas_size)
        return {"image": image, "size": size, "label": self.labels[key["index"]], **key}

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


def on_canvas(images: list[Tensor], canvas_size: int) -> tuple[Tensor, Tensor]:
    """Stack images of any size, in the upper left corners of black squares.

    Args:
        images: uint8 (3, H, W) each. Larger than the square they are resized to fit in, aspect kept.
        canvas_size: Side of the square, pixels.

    Returns:
        uint8 (B, 3, canvas_size, canvas_size), and height and width of each image in it, int64 (B, 2).
    """
    canvas = torch.zeros(len(images), 3, canvas_size, canvas_size, dtype=torch.uint8)
    sizes = []
    for row, image in zip(canvas, images, strict=True):
        shrink = min(1.0, canvas_size / max(image.shape[1:]))
        if shrink < 1:
            image = v2.functional.resize(image, [max(1, round(side * shrink)) for side in image.shape[1:]])
        height, width = image.shape[1:]
        row[:, :height, :width] = image
        sizes.append((height, width))
    return canvas, torch.tensor(sizes)


class ImageFolderDataModule(ImageDataModule):
    """Images in `root/train/<class>/` and `root/test/<class>/`, or `root/val/<class>/` if there is no `test/`.

    The loader processes decode and augment: let `num_workers` be near the number of cores. With `views`, they decode
    training images and hand them over whole, and crops are cut on the batch's device: up to `canvas_size` pixels a
    side as they are, larger ones scaled down first (which the official code does not do).
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    crop_padding = 0
    flip = False
    sized_by_loader = True

    def __init__(
        self,
        *,
        root: str | Path = "data/images",
        image_size: int | None = None,
        canvas_size: int = 512,
        **settings: Any,
    ) -> None:
        """Check the arguments; folders are listed in `setup`.

        Args:
            root: Folder with `train/` and `test/` or `val/`, which must hold the same classes.
            image_size: Height and width of the network's input, pixels; None: 224, or that of the teacher's view.
            canvas_size: Largest side of images that views are made from, pixels.
            **settings: Arguments of `ImageDataModule`. Training images get a random resized crop and a flip;
                others are resized to 256/224 of `image_size` and cropped in the middle.

        Raises:
            FileNotFoundError: If `root` lacks these folders.
            ValueError: As `ImageDataModule`; in `setup`, if the classes differ; in a step, if a file is no
                image.
        """
        root = str(root)  # a plain string in the checkpoint: weights_only loading refuses paths
        super().__init__(**settings)
        check_whole(canvas_size=canvas_size)
        check_whole_or_none(image_size=image_size)
        if self.views is None:
            self.image_size = image_size or 224
        elif image_size not in (None, self.image_size):
            raise ValueError(
                f"image_size={image_size} is not teacher_size={self.image_size} of the views: leave it out."
            )
        self.root = Path(root)
        self.canvas_size = canvas_size

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
        size, views = self.image_size, self.views
        resize = round(size * 256 / 224) if views is None else views.teacher_resize
        canvas_size = None if views is None else self.canvas_size
        return FolderImages(self._folder(split), size, self.augment, self.seed, resize, canvas_size)

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
