"""What all objectives share: what they see of a batch, the weights, the warm-up, the paths of features."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lit_kd.checks import check_not_negative, check_positive, check_whole
from lit_kd.losses import kd_loss


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
        check_not_negative(weight=weight, ce_weight=ce_weight, kd_weight=kd_weight)
        check_positive(temperature=temperature)
        check_whole(0, warmup_epochs=warmup_epochs)
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
