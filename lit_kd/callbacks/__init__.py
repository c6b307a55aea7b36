"""Callbacks that work with any method, and most of them with any LightningModule."""

from lit_kd.callbacks.confusion import ConfusionMatrixReport
from lit_kd.callbacks.eigen_cam import EigenCAMPanel
from lit_kd.callbacks.export import ExportStudent
from lit_kd.callbacks.predictions import PredictionsWriter
from lit_kd.callbacks.random_state import RandomState
from lit_kd.callbacks.robustness import RobustnessReport
from lit_kd.callbacks.summary import RunSummary

__all__ = [
    "ConfusionMatrixReport",
    "EigenCAMPanel",
    "ExportStudent",
    "PredictionsWriter",
    "RandomState",
    "RobustnessReport",
    "RunSummary",
]
