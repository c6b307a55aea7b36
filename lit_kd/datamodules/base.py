"""What all image data modules share: the batch contract, subsets, loaders and the augmentation hook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lit_kd.checks import check_list, check_share, check_whole, check_whole_or_none
from lit_kd.datamodules.augment import counter_uniform, random_crop_flip
from lit_kd.datamodules.loading import (
    Batch,
    ImageSet,
    RankSampler,
    ResumableLoader,
    ShardSampler,
    StreamSampler,
    build_loader,
    limited,
)
from lit_kd.datamodules.subsets import choose_samples, class_indices
from lit_kd.datamodules.views import MultiCropViews

Split = Literal["train", "test"]


class ImageDataModule(LightningDataModule, ABC):
    """Batches of images as dicts: `image` float32 (B, 3, H, W) in [0, 1], `label` and `index` int64 (B,).

    `index` is the position in the whole training (or test) set. Training batches, and only they, also hold
    `visit` int64 (B,): how often that sample was drawn before. Order and augmentation are functions of seed,
    visit and index, so runs agree over numbers of devices and workers, and one resumed in mid-epoch equals a
    straight one.

    With `views`, training batches hold the teacher's view as `image` and the student's views as `crops`, a list of
    groups (B * n, 3, s, s), image-major; in evaluation `image` is the teacher's view, never flipped.

    Subclasses set `image_size`, `mean`, `std`, `num_classes` (known before `setup`), the batch augmentation's
    `crop_padding` and `flip`, and implement `load`. `sized_by_loader`: images for evaluation arrive as the teacher's
    view has them.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_padding: int = 4
    flip: bool = True
    sized_by_loader: bool = False

    def __init__(
        self,
        *,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        train_fraction: float = 1.0,
        omit_classes: list[int | str] | None = None,
        val_fraction: float = 0.0,
        samples_per_epoch: int | None = None,
        augment: bool = True,
        views: MultiCropViews | None = None,
    ) -> None:
        """Check and keep the arguments.

        Args:
            batch_size: Training samples a step and device.
            eval_batch_size: Most samples a step and device in evaluation.
            num_workers: Loader processes.
            seed: Seed of subsets, order and augmentation.
            train_fraction: Share of each class to train on, in (0, 1], at least one sample a class.
            omit_classes: Classes, by index or name, left out of training and validation, not of the test set.
            val_fraction: Share of each class held out for validation, in [0, 1); 0 means no validation.
            samples_per_epoch: Draws an epoch over all devices, rounded up to full batches; None means the
                number of training samples.
            augment: Random crops and flips in training.
            views: Several views of each training image, in the place of these crops and flips; `image_size` becomes
                that of the teacher's view.

        Raises:
            ValueError: If an argument is out of range; in `setup`, if an omitted class does not exist or a
                class has no training sample.
        """
        super().__init__()
        check_whole(batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_whole(0, num_workers=num_workers, seed=seed)
        check_whole_or_none(samples_per_epoch=samples_per_epoch)
        check_share("(0, 1]", train_fraction=train_fraction)
        check_share("[0, 1)", val_fraction=val_fraction)
        check_list(omit_classes=omit_classes or [])
        if views is not None and not augment:
            raise ValueError("views are random and augment=False forbids it: leave one of them out.")
        self.save_hyperparameters()
        if isinstance(views, dict):  # from a checkpoint, by load_from_checkpoint
            views = MultiCropViews(**views)
        elif views is not None and "_instantiator" not in self.hparams:  # Lightning's mark of the command line
            self.hparams["views"] = asdict(views)  # weights_only loading reads plain values
        if views is not None:
            self.image_size = views.teacher_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_fraction = train_fraction
        self.omit_classes = omit_classes or []
        self.val_fraction = val_fraction
        self.samples_per_epoch = samples_per_epoch
        self.augment = augment
        self.views = views
        self.class_names: list[str] = []
        self.omitted: list[int] = []
        self.sets: dict[Split, ImageSet] = {}
        self.train_index = self.val_index = torch.empty(0, dtype=torch.int64)
        self._range_checked = False

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes, omitted ones included; known before `setup`."""

    @abstractmethod
    def load(self, split: Split) -> ImageSet:
        """Read the training or the test set."""

    def setup(self, stage: str) -> None:
        """Read the sets that the stage needs, once, and choose the training and validation samples."""
        self._range_checked = False
        split: Split = "train" if stage in ("fit", "validate") else "test"
        if split in self.sets:
            return
        images = self.load(split)
        self.class_names = images.class_names
        self.omitted = class_indices(self.omit_classes, images.class_names)
        if split == "train":
            self.train_index, self.val_index = choose_samples(
                images.labels,
                images.class_names,
                self.omitted,
                self.val_fraction,
                self.train_fraction,
                self.seed,
            )
        self.sets[split] = images

    def train_samples(self) -> tuple[Tensor, Tensor]:
        """Positions (n,) and labels (n,), int64, of the samples that are trained on."""
        return self.train_index, self._set("train").labels[self.train_index]

    def train_dataloader(self) -> ResumableLoader:
        """Full batches of the endless training order, with `visit`."""
        images = self._set("train")
        samples = self.samples_per_epoch or len(self.train_index)
        loader = self._loader(images, StreamSampler(self.train_index, self.batch_size, samples, self.seed))
        loader.limit = limited(len(loader), self.trainer)
        return loader

    def train_eval_dataloader(self) -> ResumableLoader:
        """The training samples, once each and without augmentation, for statistics over the whole set."""
        return self._eval_loader("train", self.train_index)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        """The held-out samples once each, or no loader if val_fraction is 0."""
        return self._eval_loader("train", self.val_index) if self.val_fraction else []

    def test_dataloader(self) -> ResumableLoader:
        """The test set, once each."""
        return self._eval_loader("test", torch.arange(len(self._set("test"))))

    def predict_dataloader(self) -> ResumableLoader:
        """The test set, once each."""
        return self.test_dataloader()

    def _set(self, split: Split) -> ImageSet:
        if split not in self.sets:
            raise RuntimeError(
                f"The {split} set is not there yet: call setup('{'fit' if split == 'train' else split}')."
            )
        return self.sets[split]

    def _eval_loader(self, split: Split, index: Tensor) -> ResumableLoader:
        return self._loader(self._set(split), ShardSampler(index, self.eval_batch_size))

    def _loader(self, images: ImageSet, sampler: RankSampler) -> ResumableLoader:
        return build_loader(images, sampler, self.num_workers, self.seed, self.trainer)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> dict[str, Any]:
        """Augment or make views if the batch holds `visit`, and turn uint8 into [0, 1], on the batch's device.

        Raises:
            ValueError: If float images, looked at in the first batch of a stage, lie outside [0, 1].
        """
        image = batch["image"]
        if image.is_floating_point() and not self._range_checked:
            self._range_checked = True
            low, high = image.aminmax()
            if low < 0 or high > 1:
                raise ValueError(
                    f"Images span [{low:.3g}, {high:.3g}] and must lie in [0, 1]: leave normalisation to the network."
                )
        if self.views is not None and "visit" in batch:
            views = self.views(image, batch["visit"], batch["index"], self.seed, batch.get("size"))
            return {**{name: value for name, value in batch.items() if name != "size"}, **views}
        if self.augment and "visit" in batch and (self.crop_padding or self.flip):
            uniforms = counter_uniform(self.seed, batch["visit"], batch["index"], slots=3)
            image = random_crop_flip(image, uniforms, self.crop_padding, self.flip)
        if image.dtype == torch.uint8:
            image = image / 255  # float32, in one pass
        if self.views is not None and not self.sized_by_loader:
            image = self.views.teacher(image)
        return {**batch, "image": image}
