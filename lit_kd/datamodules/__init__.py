"""Data modules whose order and augmentation are functions of the seed: pixels in [0, 1], and tokens."""

from lit_kd.datamodules.arithmetic import ArithmeticDataModule
from lit_kd.datamodules.base import ImageDataModule
from lit_kd.datamodules.chats import ChatDataModule
from lit_kd.datamodules.cifar import CIFAR10DataModule, CIFAR100DataModule
from lit_kd.datamodules.digits import DigitsDataModule
from lit_kd.datamodules.glue import GLUEDataModule
from lit_kd.datamodules.image_folder import ImageFolderDataModule
from lit_kd.datamodules.instructions import InstructionDataModule
from lit_kd.datamodules.problems import AIME24DataModule, GSM8KDataModule, MATH500DataModule, ProblemDataModule
from lit_kd.datamodules.squad import SQuADDataModule
from lit_kd.datamodules.ssb import HintsDataModule, RightAnswersDataModule, SSBDataModule
from lit_kd.datamodules.tasks import TaskDataModule
from lit_kd.datamodules.text import TextDataModule
from lit_kd.datamodules.text_corpus import TextCorpusDataModule
from lit_kd.datamodules.tiny_imagenet import TinyImageNetDataModule
from lit_kd.datamodules.views import MultiCropViews

__all__ = [
    "AIME24DataModule",
    "ArithmeticDataModule",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "ChatDataModule",
    "DigitsDataModule",
    "GLUEDataModule",
    "GSM8KDataModule",
    "HintsDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "InstructionDataModule",
    "MATH500DataModule",
    "MultiCropViews",
    "ProblemDataModule",
    "RightAnswersDataModule",
    "SQuADDataModule",
    "SSBDataModule",
    "TaskDataModule",
    "TextCorpusDataModule",
    "TextDataModule",
    "TinyImageNetDataModule",
]
