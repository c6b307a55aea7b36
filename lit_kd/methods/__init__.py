"""The methods, one LightningModule a file."""

from lit_kd.methods.base import Distill
from lit_kd.methods.classifier import Classifier
from lit_kd.methods.defensive import DefensiveDistill
from lit_kd.methods.mcmi import MCMIDistill, MCMITeacher

__all__ = ["Classifier", "DefensiveDistill", "Distill", "MCMIDistill", "MCMITeacher"]
