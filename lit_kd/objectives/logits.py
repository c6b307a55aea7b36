"""Objectives that read logits."""

from torch import Tensor

from lit_kd.checks import check_not_negative
from lit_kd.losses import dist_loss, dkd_loss, kd_loss, logit_standardization_kd_loss
from lit_kd.objectives.base import DistillStep, Objective


class KD(Objective):
    """Hinton's distillation (arXiv:1503.02531): ``T^2 KL(teacher_T || student_T)``.

    Args:
        weight: see :class:`Objective`.
        ce_weight: see :class:`Objective`.
        temperature: T.
    """

    def __init__(self, weight: float = 0.9, ce_weight: float = 0.1, temperature: float = 4.0) -> None:
        super().__init__(weight, ce_weight=ce_weight, temperature=temperature)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return kd_loss(step.student_logits, step.teacher_logits, self.temperature)


class DKD(Objective):
    """Decoupled KD (arXiv:2203.08679); beta 2 for resnet56-20, 6 for vgg13-8, 8 for resnet32x4-8x4.

    Args:
        alpha: weight of the target class against the others.
        beta: weight of the others among themselves.
        temperature: T.
        weight: see :class:`Objective`.
        ce_weight: see :class:`Objective`.
        warmup_epochs: see :class:`Objective`.
    """

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
        check_not_negative(alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return dkd_loss(step.student_logits, step.teacher_logits, step.label, self.alpha, self.beta, self.temperature)


class DIST(Objective):
    """Relations between and within classes (arXiv:2205.10536).

    Args:
        beta: weight of the relations between classes.
        gamma: weight of the relations within a class.
        temperature: T.
        weight: see :class:`Objective`.
        ce_weight: see :class:`Objective`.
    """

    def __init__(
        self,
        beta: float = 2.0,
        gamma: float = 2.0,
        temperature: float = 4.0,
        weight: float = 1.0,
        ce_weight: float = 1.0,
    ) -> None:
        super().__init__(weight, ce_weight=ce_weight, temperature=temperature)
        check_not_negative(beta=beta, gamma=gamma)
        self.beta, self.gamma = beta, gamma

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return dist_loss(step.student_logits, step.teacher_logits, self.beta, self.gamma, self.temperature)


class LogitStandardization(Objective):
    """KD of z-scored logits (arXiv:2403.01427).

    Args:
        weight: see :class:`Objective`.
        ce_weight: see :class:`Objective`.
        temperature: T.
    """

    def __init__(self, weight: float = 9.0, ce_weight: float = 0.1, temperature: float = 2.0) -> None:
        super().__init__(weight, ce_weight=ce_weight, temperature=temperature)

    def term(self, step: DistillStep) -> Tensor:
        """Scalar."""
        return logit_standardization_kd_loss(step.student_logits, step.teacher_logits, self.temperature)
