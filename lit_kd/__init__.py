"""Published knowledge-distillation methods as LightningModules.

The names below are imported when they are first used: ``import lit_kd`` itself is quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "lit_kd.methods": (
        "Classifier",
        "DefensiveDistill",
        "Distill",
        "FineTune",
        "FixedData",
        "LanguageDistill",
        "LanguageModel",
        "LinearEvaluation",
        "MCMIDistill",
        "MCMITeacher",
        "MGSRDistill",
        "MiniLMDistill",
        "OBoWModule",
        "OnPolicy",
        "QuestionAnswering",
        "Refinement",
        "Replay",
        "Rollouts",
        "SCRG",
        "SSBDistill",
        "SequenceClassifier",
        "SequenceSource",
        "Synthesis",
        "SyntheticDistill",
        "TeacherLogits",
        "TeacherMixed",
    ),
    "lit_kd.datamodules": (
        "AIME24DataModule",
        "ArithmeticDataModule",
        "CIFAR10DataModule",
        "CIFAR100DataModule",
        "ChatDataModule",
        "DigitsDataModule",
        "GLUEDataModule",
        "GSM8KDataModule",
        "HintsDataModule",
        "ImageFolderDataModule",
        "InstructionDataModule",
        "MATH500DataModule",
        "MultiCropViews",
        "RightAnswersDataModule",
        "SQuADDataModule",
        "SSBDataModule",
        "TaskDataModule",
        "TextCorpusDataModule",
        "TinyImageNetDataModule",
    ),
    "lit_kd.language.engines": (
        "Completion",
        "Sampling",
        "ServerEngine",
        "TransformersEngine",
        "VLLMEngine",
    ),
    "lit_kd.models": (
        "BoWHead",
        "EMATeacher",
        "FeatureTaps",
        "FrozenTeacher",
        "PixelModel",
        "Vocabulary",
        "causal_lm",
        "load_checkpoint",
        "load_exported",
        "save_exported",
        "text_encoder",
        "torchvision_model",
        "vision_model",
    ),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lit_kd' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
