"""Distillation objectives: the published losses as parts of a training loss, each chosen by its class path.

An objective says which features of the two networks it reads, owns what the loss has to learn (regressors, embeddings,
a memory bank), and returns named, weighted terms whose sum is the loss:

    ce_weight * CE(student, label) + kd_weight * T^2 KL(teacher_T || student_T) + weight * (the method's own term)

Defaults are the published weights: RepDistiller (arXiv:1910.10699) for the feature losses, mdistiller for DKD
(arXiv:2203.08679) and ReviewKD (arXiv:2104.09044), the authors' own for DIST and logit standardisation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_kd.losses import (
    CRDLoss,
    ReviewFusion,
    VIDRegressor,
    attention_transfer_loss,
    correlation_congruence_loss,
    dist_loss,
    dkd_loss,
    hint_loss,
    kd_loss,
    logit_standardization_kd_loss,
    pkt_loss,
    rkd_loss,
    similarity_preserving_loss,
)
from lit_kd.models.taps import embedding_path, stage_paths


@dataclass
class DistillStep:
    """What both networks said about one batch of B images and C classes.

    Attributes:
        student_logits: (B, C), with a graph.
        teacher_logits: (B, C), without.
        label: (B,) int64.
        index: (B,) int64 position in the dataset, or None where the data do not say.
        student_features: maps (B, C, H, W) or embeddings (B, D), in the order of the objective's paths.
        teacher_features: likewise.
        epoch: from 0.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    label: Tensor
    index: Tensor | None
    student_features: list[Tensor]
    teacher_features: list[Tensor]
    epoch: int


class Objective(nn.Module, ABC):
    """Base of all objectives; a new one overrides ``term`` and, where it reads features, ``default_paths``.

    Args:
        weight: of the method's own term.
        ce_weight: of the cross-entropy with the labels.
        kd_weight: of Hinton's loss beside the method's own term.
        temperature: of Hinton's loss.
        warmup_epochs: the method's own weight grows linearly over so many epochs, ``min((epoch + 1) / n, 1)``.
        student_layers: dotted paths that replace the method's own choice of layers, see ``FeatureTaps``.
        teacher_layers: likewise, as many.

    Raises:
        ValueError: a negative weight, or a temperature that is not positive.
    """

    needs_samples = False  # set_samples is called before training, and batches must carry `index`

    def __init__(
        self,
        weight: float,
        ce_weight: float = 1.0,
        kd_weight: float = 0.0,
        temperature: float = 4.0,
        warmup_epochs: int = 0,
        student_layers: list[str] | None = None,
        teacher_layers: list[str] | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"weight": weight, "ce_weight": ce_weight, "kd_weight": kd_weight}.items():
            if value < 0:
                raise ValueError(f"{name}={value} of {type(self).__name__} must not be negative.")
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} of {type(self).__name__} must be positive.")
        self.weight, self.ce_weight, self.kd_weight = weight, ce_weight, kd_weight
        self.temperature, self.warmup_epochs = temperature, warmup_epochs
        self.student_layers, self.teacher_layers = student_layers, teacher_layers

    def student_paths(self, network: nn.Module) -> list[str]:
        """Paths of the features to read in the student."""
        return self.default_paths(network) if self.student_layers is None else self.student_layers

    def teacher_paths(self, network: nn.Module) -> list[str]:
        """Paths of the features to read in the teacher."""
        return self.default_paths(network) if self.teacher_layers is None else self.teacher_layers

    def default_paths(self, network: nn.Module) -> list[str]:
        """The method's own choice of layers."""
        return []

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        """Create what has to learn, from one example of the features."""

    def set_samples(self, index: Tensor, label: Tensor) -> None:
        """Hear of the training set: dataset positions (n,) and labels (n,)."""

    @abstractmethod
    def term(self, step: DistillStep) -> Tensor:
        """The method's own loss, unweighted."""

    def forward(self, step: DistillStep) -> dict[str, Tensor]:
        """Named weighted terms; their sum is the loss."""
        warmup = min((step.epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0
        name = type(self).__name__.lower()
        terms = {name: self.weight * warmup * self.term(step)}
        if self.ce_weight:
            terms["ce"] = self.ce_weight * F.cross_entropy(step.student_logits, step.label)
        if self.kd_weight:
            hinton = kd_loss(step.student_logits, step.teacher_logits, self.temperature)
            terms["hinton"] = self.kd_weight * hinton
        return terms


class KD(Objective):
    """Hinton's distillation (arXiv:1503.02531): ``T^2 KL(teacher_T || student_T)``."""

    def __init__(self, weight: float = 0.9, ce_weight: float = 0.1, temperature: float = 4.0) -> None:
        super().__init__(weight, ce_weight=ce_weight, temperature=temperature)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return kd_loss(step.student_logits, step.teacher_logits, self.temperature)


class DKD(Objective):
    """Decoupled KD (arXiv:2203.08679); beta 2 for resnet56-20, 6 for vgg13-8, 8 for resnet32x4-8x4."""

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        weight: float = 1.0,
        ce_weight: float = 1.0,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__(weight, ce_weight=ce_weight, temperature=temperature, warmup_epochs=warmup_epochs)
        self.alpha, self.beta = alpha, beta

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return dkd_loss(step.student_logits, step.teacher_logits, step.label, self.alpha, self.beta, self.temperature)


class DIST(Objective):
    """Relations between and within classes (arXiv:2205.10536)."""

    def __init__(
        self,
        beta: float = 2.0,
        gamma: float = 2.0,
        temperature: float = 4.0,
        weight: float = 1.0,
        ce_weight: float = 1.0,
    ) -> None:
        super().__init__(weight, ce_weight=ce_weight, temperature=temperature)
        self.beta, self.gamma = beta, gamma

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return dist_loss(step.student_logits, step.teacher_logits, self.beta, self.gamma, self.temperature)


class LogitStandardization(Objective):
    """KD of z-scored logits (arXiv:2403.01427)."""

    def __init__(self, weight: float = 9.0, ce_weight: float = 0.1, temperature: float = 2.0) -> None:
        super().__init__(weight, ce_weight=ce_weight, temperature=temperature)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return logit_standardization_kd_loss(step.student_logits, step.teacher_logits, self.temperature)


class FitNet(Objective):
    """Hint (arXiv:1412.6550) trained jointly with the classifier, as RepDistiller does; the paper had two stages.

    The regressor is a convolution that brings the student's map to the teacher's size, batch norm and ReLU.
    """

    def __init__(self, weight: float = 100.0, **kwargs: Any) -> None:
        super().__init__(weight, **kwargs)

    def default_paths(self, network: nn.Module) -> list[str]:
        """The second stage."""
        return stage_paths(network)[1:2]

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        """The regressor."""
        self.regressor = hint_regressor(student[0], teacher[0])

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return hint_loss(self.regressor(step.student_features[0]), step.teacher_features[0])


def hint_regressor(student: Tensor, teacher: Tensor) -> nn.Sequential:
    """Convolution, batch norm and ReLU from the student's map (B, C, H, W) to the teacher's channels and size.

    Raises:
        ValueError: the student's map is smaller than the teacher's by another factor than two.
    """
    source, target = student.shape[-1], teacher.shape[-1]
    channels = (student.shape[1], teacher.shape[1])
    convolution: nn.Module
    if source == 2 * target:
        convolution = nn.Conv2d(*channels, kernel_size=3, stride=2, padding=1)
    elif 2 * source == target:
        convolution = nn.ConvTranspose2d(*channels, kernel_size=4, stride=2, padding=1)
    elif source >= target:
        convolution = nn.Conv2d(*channels, kernel_size=1 + source - target)
    else:
        raise ValueError(f"No hint regressor leads from a {source}x{source} map of the student to {target}x{target}.")
    return nn.Sequential(convolution, nn.BatchNorm2d(channels[1]), nn.ReLU())


class AttentionTransfer(Objective):
    """Attention transfer (arXiv:1612.03928) over all stages."""

    def __init__(self, weight: float = 1000.0, **kwargs: Any) -> None:
        super().__init__(weight, **kwargs)

    def default_paths(self, network: nn.Module) -> list[str]:
        """All stages."""
        return stage_paths(network)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return attention_transfer_loss(step.student_features, step.teacher_features)


class SimilarityPreserving(Objective):
    """Similarity-preserving distillation (arXiv:1907.09682) of the last stage."""

    def __init__(self, weight: float = 3000.0, **kwargs: Any) -> None:
        super().__init__(weight, **kwargs)

    def default_paths(self, network: nn.Module) -> list[str]:
        """The last stage."""
        return stage_paths(network)[-1:]

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return similarity_preserving_loss(step.student_features, step.teacher_features)


class VID(Objective):
    """Variational information distillation (arXiv:1904.05835) over all stages."""

    def __init__(self, weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(weight, **kwargs)

    def default_paths(self, network: nn.Module) -> list[str]:
        """All stages."""
        return stage_paths(network)

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        """One regressor and variance a stage."""
        pairs = zip(student, teacher, strict=True)
        self.regressors = nn.ModuleList([VIDRegressor(s.shape[1], t.shape[1]) for s, t in pairs])

    def term(self, step: DistillStep) -> Tensor:
        """Scalar, sum over stages."""
        triples = zip(self.regressors, step.student_features, step.teacher_features, strict=True)
        return torch.stack([regressor(s, t) for regressor, s, t in triples]).sum()


class EmbeddingObjective(Objective):
    """Base of the objectives that read the pooled embedding (B, D) under the classifier."""

    def default_paths(self, network: nn.Module) -> list[str]:
        """The classifier's input."""
        return [embedding_path(network)]


class CorrelationCongruence(EmbeddingObjective):
    """Correlation congruence (arXiv:1904.01802) between linear embeddings of both networks, both learned."""

    def __init__(self, weight: float = 0.02, feature_dim: int = 128, **kwargs: Any) -> None:
        super().__init__(weight, **kwargs)
        self.feature_dim = feature_dim

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        """The two linear embeddings."""
        self.embed_student = nn.Linear(student[0].shape[1], self.feature_dim)
        self.embed_teacher = nn.Linear(teacher[0].shape[1], self.feature_dim)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        student = self.embed_student(step.student_features[0])
        return correlation_congruence_loss(student, self.embed_teacher(step.teacher_features[0]))


class RKD(EmbeddingObjective):
    """Relational KD (arXiv:1904.05068): distances and angles of the embeddings."""

    def __init__(
        self, weight: float = 1.0, distance_weight: float = 25.0, angle_weight: float = 50.0, **kwargs: Any
    ) -> None:
        super().__init__(weight, **kwargs)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return rkd_loss(step.student_features[0], step.teacher_features[0], self.distance_weight, self.angle_weight)


class PKT(EmbeddingObjective):
    """Probabilistic knowledge transfer (arXiv:1803.10837) of the embeddings."""

    def __init__(self, weight: float = 30000.0, **kwargs: Any) -> None:
        super().__init__(weight, **kwargs)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return pkt_loss(step.student_features[0], step.teacher_features[0])


class CRD(EmbeddingObjective):
    """Contrastive representation distillation (arXiv:1910.10699) against a memory bank of the training set.

    Args:
        weight: of the contrastive term.
        feature_dim: of both embeddings and of the bank.
        num_negatives: K.
        nce_temperature: of the scores.
        momentum: of the bank's rows.
        negatives: ``class``: samples of other classes; ``instance``: any other sample, labels are not needed.
        kwargs: see :class:`Objective`; CRD+KD is ``kd_weight=1``.
    """

    needs_samples = True

    def __init__(
        self,
        weight: float = 0.8,
        feature_dim: int = 128,
        num_negatives: int = 16384,
        nce_temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: str = "class",
        **kwargs: Any,
    ) -> None:
        super().__init__(weight, **kwargs)
        self.settings: dict[str, Any] = {
            "feature_dim": feature_dim,
            "num_negatives": num_negatives,
            "temperature": nce_temperature,
            "momentum": momentum,
            "negatives": negatives,
        }

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        """The two embeddings; the bank follows with the samples."""
        self.contrast = CRDLoss(student[0].shape[1], teacher[0].shape[1], **self.settings)

    def set_samples(self, index: Tensor, label: Tensor) -> None:
        """Size the bank by the training set."""
        self.contrast.set_samples(index, label)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar, both sides."""
        return self.contrast(step.student_features[0], step.teacher_features[0], step.index)


class ReviewKD(Objective):
    """Knowledge review (arXiv:2104.09044): the student's maps, fused deep to shallow, meet the teacher's."""

    def __init__(
        self, weight: float = 1.0, warmup_epochs: int = 20, max_mid_channels: int = 512, **kwargs: Any
    ) -> None:
        super().__init__(weight, warmup_epochs=warmup_epochs, **kwargs)
        self.max_mid_channels = max_mid_channels

    def student_paths(self, network: nn.Module) -> list[str]:
        """All stages and the embedding."""
        return self.student_layers or [*stage_paths(network), embedding_path(network)]

    def teacher_paths(self, network: nn.Module) -> list[str]:
        """All stages before their last ReLU, and the embedding."""
        return self.teacher_layers or [*stage_paths(network, preactivation=True), embedding_path(network)]

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        """The fusion of the student's maps."""
        self.fusion = ReviewFusion([s.shape[1] for s in student], [t.shape[1] for t in teacher], self.max_mid_channels)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar, sum over stages."""
        return self.fusion(_as_maps(step.student_features), _as_maps(step.teacher_features))


def _as_maps(features: list[Tensor]) -> list[Tensor]:
    return [f if f.ndim == 4 else f[:, :, None, None] for f in features]
