"""Callbacks that work with any method, and most of them with any LightningModule."""

from lit_kd.callbacks.confusion import ConfusionMatrixReport
from lit_kd.callbacks.eigen_cam import EigenCAMPanel
from lit_kd.callbacks.ema import EMATeacherCallback
from lit_kd.callbacks.export import ExportStudent
from lit_kd.callbacks.predictions import PredictionsWriter
from lit_kd.callbacks.random_state import RandomState
from lit_kd.callbacks.summary import RunSummary
from lit_kd.callbacks.vocabulary import OnlineVocabularyCallback

__all__ = [
    "ConfusionMatrixReport",
    "EMATeacherCallback",
    "EigenCAMPanel",
    "ExportStudent",
    "OnlineVocabularyCallback",
    "PredictionsWriter",
    "RandomState",
    "RunSummary",
]
