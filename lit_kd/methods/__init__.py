"""The methods, one LightningModule a file."""

from lit_kd.methods.base import Distill
from lit_kd.methods.classifier import Classifier
from lit_kd.methods.defensive import DefensiveDistill
from lit_kd.methods.language import LanguageModel
from lit_kd.methods.language_distill import LanguageDistill
from lit_kd.methods.linear_evaluation import FineTune, LinearEvaluation
from lit_kd.methods.mcmi import MCMIDistill, MCMITeacher
from lit_kd.methods.mgsr import MGSRDistill
from lit_kd.methods.minilm import MiniLMDistill, needs_assistant
from lit_kd.methods.obow import OBoWModule
from lit_kd.methods.question_answering import QuestionAnswering
from lit_kd.methods.replay import Replay
from lit_kd.methods.rollouts import Rollouts
from lit_kd.methods.scrg import SCRG
from lit_kd.methods.sequence_classifier import SequenceClassifier
from lit_kd.methods.sources import FixedData, OnPolicy, SequenceSource, TeacherMixed
from lit_kd.methods.ssb import Refinement, SSBDistill, TeacherLogits
from lit_kd.methods.synthesis import Synthesis
from lit_kd.methods.synthetic import SyntheticDistill

__all__ = [
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
    "needs_assistant",
]
