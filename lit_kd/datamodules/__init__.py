"""Image data modules: batches of pixels in [0, 1] whose order and augmentation are functions of the seed."""

from lit_kd.datamodules.base import ImageDataModule
from lit_kd.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from lit_kd.datamodules.digits import DigitsDataModule
from lit_kd.datamodules.image_folder import ImageFolderDataModule
from lit_kd.datamodules.tiny_imagenet import TinyImageNetDataModule
from lit_kd.datamodules.views import MultiCropViews

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "MultiCropViews",
    "TinyImageNetDataModule",
]
