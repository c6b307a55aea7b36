"""Distillation objectives: the published losses as parts of a training loss, each chosen by its class path.

An objective says which features of the two networks it reads, owns what the loss has to learn (regressors, embeddings,
a memory bank), and returns named, weighted terms whose sum is the loss:

    ce_weight * CE(student, label) + kd_weight * T^2 KL(teacher_T || student_T) + weight * (the method's own term)

Defaults are the published weights: RepDistiller (arXiv:1910.10699) for the feature losses, mdistiller for DKD
(arXiv:2203.08679) and ReviewKD (arXiv:2104.09044), the authors' own for DIST and logit standardisation.
"""

from lit_kd.objectives.base import DistillStep, Objective
from lit_kd.objectives.features import (
    CRD,
    PKT,
    RKD,
    VID,
    AttentionTransfer,
    CorrelationCongruence,
    EmbeddingObjective,
    FitNet,
    ReviewKD,
    SimilarityPreserving,
    hint_regressor,
)
from lit_kd.objectives.logits import DIST, DKD, KD, LogitStandardization

__all__ = [
    "AttentionTransfer",
    "CRD",
    "CorrelationCongruence",
    "DIST",
    "DKD",
    "DistillStep",
    "EmbeddingObjective",
    "FitNet",
    "KD",
    "LogitStandardization",
    "Objective",
    "PKT",
    "RKD",
    "ReviewKD",
    "SimilarityPreserving",
    "VID",
    "hint_regressor",
]
