"""Networks, teachers, feature taps, checkpoints and export."""

from lit_kd.models.card import Origin, Paper
from lit_kd.models.causal import CompletionStates, causal_lm, completion_labels
from lit_kd.models.checkpoint import load_checkpoint
from lit_kd.models.ema import EMATeacher
from lit_kd.models.export import load_exported, save_exported
from lit_kd.models.factory import VisionModel, vision_model
from lit_kd.models.pixels import PixelModel, torchvision_model
from lit_kd.models.taps import FeatureTaps
from lit_kd.models.teacher import FrozenTeacher
from lit_kd.models.text import text_encoder
from lit_kd.models.vocabulary import BoWHead, Vocabulary

__all__ = [
    "BoWHead",
    "CompletionStates",
    "EMATeacher",
    "FeatureTaps",
    "FrozenTeacher",
    "Origin",
    "Paper",
    "PixelModel",
    "VisionModel",
    "Vocabulary",
    "causal_lm",
    "completion_labels",
    "load_checkpoint",
    "load_exported",
    "save_exported",
    "text_encoder",
    "torchvision_model",
    "vision_model",
]
