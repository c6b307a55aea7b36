"""Tiny ImageNet in its official layout, as a folder or as the zip archive, which is read in place."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from lit_kd.checks import check_choice
from lit_kd.datamodules.base import ImageDataModule, Split
from lit_kd.datamodules.decoding import decode_images, is_image, list_files, read_files
from lit_kd.datamodules.loading import InMemoryImages
from lit_kd.models.pixels import imagenet_labels, imagenet_names, imagenet_wnids


class TinyImageNetDataModule(ImageDataModule):
    """Tiny ImageNet (Stanford CS231n) in memory: 200 classes of 64x64 images.

    The official val split is the test set, as the official test split has no labels. Classes are numbered by
    sorted WordNet id in every split and named by their first word in `words.txt` (by all words where two
    share the first).

    Two protocols test a network with ImageNet's 1000 logits; say which, as the numbers differ. "1000-way":
    `label_space="imagenet"`, the argmax over all 1000. "Restricted 200-way", which is easier: the default labels,
    and a network with the logits of these classes alone (`torchvision_model(..., wnids=root)`). Such networks may
    have been trained on these very images, which are ImageNet's, made smaller.
    """

    image_size = 64
    mean = (0.4802, 0.4481, 0.3975)
    std = (0.2770, 0.2691, 0.2821)
    crop_padding = 8

    def __init__(
        self,
        *,
        root: str | Path = "data/tiny-imagenet-200",
        checksum: str | None = None,
        label_space: Literal["tiny", "imagenet"] = "tiny",
        **settings: Any,
    ) -> None:
        """Check the arguments; the files are read in `setup`.

        Args:
            root: The folder `tiny-imagenet-200`, a folder that holds it, or `tiny-imagenet-200.zip`.
            checksum: md5 or sha256 of the zip archive in hex, verified before anything is read (official md5:
                90528d7ca1a48142e341f4ef8d21d0de). The CRC of each file in an archive is verified in any case.
            label_space: "tiny": labels 0 to 199, by sorted WordNet id. "imagenet", for tests only: the same classes
                under ImageNet's labels, 0 to 999, and names.
            **settings: Arguments of `ImageDataModule`. Training images are padded by 8, cropped and flipped.

        Raises:
            FileNotFoundError: In `setup`, if `root` does not exist.
            ValueError: As `ImageDataModule`; if a file is damaged, missing or names an unknown class; in
                ImageNet's label space, if `omit_classes` is given, the stage is not a test or prediction, or a
                class is not among ImageNet's 1000.
        """
        root = str(root)  # a plain string in the checkpoint: weights_only loading refuses paths
        super().__init__(**settings)
        if checksum is not None and len(checksum) not in (32, 64):
            raise ValueError(f"checksum={checksum} is neither an md5 (32 hex digits) nor a sha256 (64).")
        check_choice(("tiny", "imagenet"), label_space=label_space)
        if label_space == "imagenet" and self.omit_classes:
            raise ValueError("omit_classes concerns training, which label_space='imagenet' has none of: leave it out.")
        self.root = Path(root)
        self.checksum = checksum
        self.label_space = label_space

    def prepare_data(self) -> None:
        """Verify the checksum of the archive, if one was given."""
        if self.checksum is None:
            return
        if not self.root.is_file():
            raise ValueError(f"checksum is that of a zip archive, and root={self.root} is none: leave it out.")
        algorithm = "md5" if len(self.checksum) == 32 else "sha256"
        digest = hashlib.new(algorithm, self.root.read_bytes()).hexdigest()
        if digest != self.checksum.lower():
            raise ValueError(f"{self.root} has checksum {digest}, not {self.checksum}: fetch the archive again.")

    @property
    def num_classes(self) -> int:
        """Number of lines in `wnids.txt` (200, fewer in a subset), or ImageNet's 1000."""
        return len(self.wnids) if self.label_space == "tiny" else len(imagenet_wnids())

    @cached_property
    def wnids(self) -> list[str]:
        """WordNet ids of the classes, sorted."""
        return sorted(self._read_lines("wnids.txt"))

    @cached_property
    def _files(self) -> list[str]:
        if not self.root.exists():
            raise FileNotFoundError(f"root={self.root} does not exist: give the folder or zip of Tiny ImageNet.")
        return list_files(self.root)

    @cached_property
    def _prefix(self) -> str:
        found = [name for name in self._files if name.rpartition("/")[2] == "wnids.txt"]
        if not found:
            raise ValueError(f"root={self.root} has no wnids.txt: give the official folder or zip of Tiny ImageNet.")
        return found[0].removesuffix("wnids.txt")

    def _read_lines(self, name: str) -> list[str]:
        (data,) = read_files(self.root, [self._prefix + name])
        return [line.rstrip("\r") for line in data.decode().split("\n") if line.strip()]

    def load(self, split: Split) -> InMemoryImages:
        """Read one split into memory."""
        if split == "train":
            if self.label_space == "imagenet":
                raise ValueError(
                    f"label_space='imagenet' is for tests: of its 1000 classes only {len(self.wnids)} have samples to "
                    "train on or validate with, so leave it out there."
                )
            start = f"{self._prefix}train/"
            names = [name for name in self._files if name.startswith(start) and is_image(name)]
            wnids = [name.removeprefix(start).partition("/")[0] for name in names]
        else:
            rows = [f"{line}\t".split("\t") for line in self._read_lines("val/val_annotations.txt")]
            names = [f"{self._prefix}val/images/{row[0]}" for row in rows]
            wnids = [row[1] for row in rows]
        if unknown := set(wnids) - set(self.wnids):
            raise ValueError(f"{self.root}: the {split} split has classes that wnids.txt lacks: {sorted(unknown)}.")
        if self.label_space == "tiny":
            classes, class_names = list(range(len(self.wnids))), self._names()
        else:
            classes, class_names = imagenet_labels(self.wnids), imagenet_names()
        position = dict(zip(self.wnids, classes, strict=True))
        labels = torch.tensor([position[wnid] for wnid in wnids], dtype=torch.int64)
        return InMemoryImages(decode_images(self.root, names, type(self).image_size), labels, class_names)

    def _names(self) -> list[str]:
        words = {wnid: text for wnid, _, text in (line.partition("\t") for line in self._read_lines("words.txt"))}
        full = [words.get(wnid, wnid) for wnid in self.wnids]
        first = [name.partition(",")[0] for name in full]
        return [short if first.count(short) == 1 else name for short, name in zip(first, full, strict=True)]
