"""Callbacks that work with any method, and most of them with any LightningModule."""

from lit_kd.callbacks.answers import AnswersWriter
from lit_kd.callbacks.collapse import CollapseMonitor
from lit_kd.callbacks.compile import ChannelsLast, CompileNetworks
from lit_kd.callbacks.confusion import ConfusionMatrixReport
from lit_kd.callbacks.effective_batch import EffectiveBatch
from lit_kd.callbacks.eigen_cam import EigenCAMPanel
from lit_kd.callbacks.ema import EMATeacherCallback
from lit_kd.callbacks.export import ExportStudent
from lit_kd.callbacks.few_shot import FewShotEpisodes, few_shot_accuracy
from lit_kd.callbacks.first_validation import FirstValidation
from lit_kd.callbacks.knn import KNNProbe, weighted_knn
from lit_kd.callbacks.online_probe import OnlineLinearProbe
from lit_kd.callbacks.predictions import PredictionsWriter
from lit_kd.callbacks.random_state import RandomState
from lit_kd.callbacks.result_file import ResultFile
from lit_kd.callbacks.robustness import RobustnessReport
from lit_kd.callbacks.safe_stop import SafeStop
from lit_kd.callbacks.summary import RunSummary
from lit_kd.callbacks.vocabulary import OnlineVocabularyCallback
from lit_kd.callbacks.vocabulary_panel import VocabularyPanel

__all__ = [
    "AnswersWriter",
    "ChannelsLast",
    "CollapseMonitor",
    "CompileNetworks",
    "ConfusionMatrixReport",
    "EMATeacherCallback",
    "EffectiveBatch",
    "EigenCAMPanel",
    "ExportStudent",
    "FewShotEpisodes",
    "FirstValidation",
    "KNNProbe",
    "OnlineLinearProbe",
    "OnlineVocabularyCallback",
    "PredictionsWriter",
    "RandomState",
    "ResultFile",
    "RobustnessReport",
    "RunSummary",
    "SafeStop",
    "VocabularyPanel",
    "few_shot_accuracy",
    "weighted_knn",
]
