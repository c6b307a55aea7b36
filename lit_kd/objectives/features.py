"""Objectives that read features: maps of stages, or the embedding under the classifier."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_kd.checks import check_choice, check_not_negative, check_positive, check_share, check_whole
from lit_kd.losses import (
    CRDLoss,
    ReviewFusion,
    VIDRegressor,
    attention_transfer_loss,
    correlation_congruence_loss,
    hint_loss,
    pkt_loss,
    rkd_loss,
    similarity_preserving_loss,
)
from lit_kd.models.taps import embedding_path, stage_paths
from lit_kd.objectives.base import DistillStep, Objective


class FitNet(Objective):
    """Hint (arXiv:1412.6550) trained jointly with the classifier, as RepDistiller does; the paper had two stages.

    The regressor is a convolution that brings the student's map to the teacher's size, batch norm and ReLU.

    Args:
        weight: see :class:`Objective`; RepDistiller's 100.
        settings: see :class:`Objective`.
    """

    def __init__(self, weight: float = 100.0, **settings: Any) -> None:
        super().__init__(weight, **settings)

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

    Args:
        student: an example of its map.
        teacher: likewise.

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
    """Attention transfer (arXiv:1612.03928) over all stages.

    Args:
        weight: see :class:`Objective`; RepDistiller's 1000.
        settings: see :class:`Objective`.
    """

    def __init__(self, weight: float = 1000.0, **settings: Any) -> None:
        super().__init__(weight, **settings)

    def default_paths(self, network: nn.Module) -> list[str]:
        """All stages."""
        return stage_paths(network)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return attention_transfer_loss(step.student_features, step.teacher_features)


class SimilarityPreserving(Objective):
    """Similarity-preserving distillation (arXiv:1907.09682) of the last stage.

    Args:
        weight: see :class:`Objective`; RepDistiller's 3000.
        settings: see :class:`Objective`.
    """

    def __init__(self, weight: float = 3000.0, **settings: Any) -> None:
        super().__init__(weight, **settings)

    def default_paths(self, network: nn.Module) -> list[str]:
        """The last stage."""
        return stage_paths(network)[-1:]

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return similarity_preserving_loss(step.student_features, step.teacher_features)


class VID(Objective):
    """Variational information distillation (arXiv:1904.05835) over all stages.

    Args:
        weight: see :class:`Objective`; RepDistiller's 1.
        settings: see :class:`Objective`.
    """

    def __init__(self, weight: float = 1.0, **settings: Any) -> None:
        super().__init__(weight, **settings)

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
    """Base of the objectives that read the pooled embedding (B, D) under the classifier; see :class:`Objective`."""

    def default_paths(self, network: nn.Module) -> list[str]:
        """The classifier's input."""
        return [embedding_path(network)]


class CorrelationCongruence(EmbeddingObjective):
    """Correlation congruence (arXiv:1904.01802) between linear embeddings of both networks, both learned.

    Args:
        weight: see :class:`Objective`; RepDistiller's 0.02.
        feature_dim: of both embeddings.
        settings: see :class:`Objective`.
    """

    def __init__(self, weight: float = 0.02, feature_dim: int = 128, **settings: Any) -> None:
        super().__init__(weight, **settings)
        check_whole(feature_dim=feature_dim)
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
    """Relational KD (arXiv:1904.05068): distances and angles of the embeddings.

    Args:
        weight: see :class:`Objective`; RepDistiller's 1.
        distance_weight: of the distances.
        angle_weight: of the angles.
        settings: see :class:`Objective`.
    """

    def __init__(
        self, weight: float = 1.0, distance_weight: float = 25.0, angle_weight: float = 50.0, **settings: Any
    ) -> None:
        super().__init__(weight, **settings)
        check_not_negative(distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return rkd_loss(step.student_features[0], step.teacher_features[0], self.distance_weight, self.angle_weight)


class PKT(EmbeddingObjective):
    """Probabilistic knowledge transfer (arXiv:1803.10837) of the embeddings.

    Args:
        weight: see :class:`Objective`; RepDistiller's 30000.
        settings: see :class:`Objective`.
    """

    def __init__(self, weight: float = 30000.0, **settings: Any) -> None:
        super().__init__(weight, **settings)

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
        settings: see :class:`Objective`; CRD+KD is ``kd_weight=1``.
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
        **settings: Any,
    ) -> None:
        super().__init__(weight, **settings)
        check_whole(feature_dim=feature_dim, num_negatives=num_negatives)
        check_positive(nce_temperature=nce_temperature)
        check_share(momentum=momentum)
        check_choice(("class", "instance"), negatives=negatives)
        self.contrast_settings: dict[str, Any] = {
            "feature_dim": feature_dim,
            "num_negatives": num_negatives,
            "temperature": nce_temperature,
            "momentum": momentum,
            "negatives": negatives,
        }

    def build(self, student: list[Tensor], teacher: list[Tensor]) -> None:
        """The two embeddings; the bank follows with the samples."""
        self.contrast = CRDLoss(student[0].shape[1], teacher[0].shape[1], **self.contrast_settings)

    def set_samples(self, index: Tensor, label: Tensor) -> None:
        """Size the bank by the training set."""
        self.contrast.set_samples(index, label)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar, both sides."""
        return self.contrast(step.student_features[0], step.teacher_features[0], step.index)


class ReviewKD(Objective):
    """Knowledge review (arXiv:2104.09044): the student's maps, fused deep to shallow, meet the teacher's.

    Args:
        weight: see :class:`Objective`.
        warmup_epochs: see :class:`Objective`.
        max_mid_channels: most channels of the fused maps.
        settings: see :class:`Objective`.
    """

    def __init__(
        self, weight: float = 1.0, warmup_epochs: int = 20, max_mid_channels: int = 512, **settings: Any
    ) -> None:
        super().__init__(weight, warmup_epochs=warmup_epochs, **settings)
        check_whole(max_mid_channels=max_mid_channels)
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
