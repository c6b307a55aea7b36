"""Defensive distillation: a student learns the soft labels of a teacher that was trained at the same temperature.

Papernot et al., "Distillation as a defense to adversarial perturbations against deep neural networks", S&P 2016,
arXiv:1511.04508. It is no defence: Carlini and Wagner (arXiv:1608.04644) break it entirely, because it hides gradients
and does not move decision boundaries. It is here for its honest evaluation (lit_kd.attacks, docs/defensive.md).
"""

from typing import Any

import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

from lit_kd.checks import check_network, check_share
from lit_kd.datamodules.batch import Batch, unpack
from lit_kd.losses import soft_cross_entropy
from lit_kd.methods.classifier import Classifier, check_classes
from lit_kd.models.card import Paper
from lit_kd.models.teacher import FrozenTeacher

PAPERS = (
    Paper(
        "Distillation as a Defense to Adversarial Perturbations against Deep Neural Networks",
        "Nicolas Papernot and Patrick McDaniel and Xi Wu and Somesh Jha and Ananthram Swami",
        2016,
        "1511.04508",
    ),
)


class DefensiveDistill(Classifier):
    r"""Stage 2: the student. Stage 1, the teacher, is ``Classifier(network, temperature=T)`` with the same T.

    .. math:: (1 - \lambda) \, CE(softmax(z_t / T), softmax(z_s / T)) + \lambda \, CE(y, softmax(z_s / T))

    Teacher and student see the same augmented view. The deployed network is the student at T = 1: its logits have grown
    about T-fold, so its softmax saturates and the gradient of its cross-entropy vanishes. ``temperature`` is in the
    checkpoint, where the evaluation finds it.

    Recipe (Papernot et al., quoted from memory): SGD 0.01, momentum 0.9, halved every 10 epochs, batch 128, 50 epochs.
    The gradient of the loss carries 1/T, and softer labels make it smaller still: with SGD a large T learns slowly.

    Args:
        student: any module from images (B, C, H, W) in [0, 1] to logits; it is the ``network`` of :class:`Classifier`.
            The paper gives it the teacher's architecture: the aim is defence, not compression.
        teacher: the trained teacher, e.g. ``vision_model(..., checkpoint=...)``; it is frozen and not saved again.
        num_classes: number of logits of both; from the command line it comes from the data.
        temperature: T of the soft labels and of the student while it trains; it should be the teacher's.
        hard_weight: lambda in [0, 1]; 0 is the original.
        t_squared: multiply the soft term by T^2, which undoes the scale of its gradient; False is the original.
        optimizer: see :class:`Distill`.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: a temperature that is not positive, a weight outside [0, 1], other numbers of classes.
    """

    papers = PAPERS
    limits = (
        "Weak attacks fail on it, but it is not robust: its gradients vanish, its decision boundaries have not moved "
        "(Carlini and Wagner, arXiv:1608.04644)."
    )

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        num_classes: int,
        temperature: float = 20.0,
        hard_weight: float = 0.0,
        t_squared: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_network(student=student, teacher=teacher)
        super().__init__(student, num_classes, temperature, optimizer, lr_scheduler)
        check_classes("teacher", teacher, num_classes)
        check_share(hard_weight=hard_weight)
        self.teacher = FrozenTeacher(teacher)
        self.hard_weight = hard_weight
        self.soft_scale = temperature**2 if t_squared else 1.0

    @property
    def student(self) -> nn.Module:
        """The network that learns."""
        return self.network

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Soft labels at T, and hard labels at T if they are wanted."""
        image, label, index = unpack(batch)
        teacher_logits, logits = self.teacher(image), self(image)
        soft = self.soft_scale * soft_cross_entropy(logits, teacher_logits, self.temperature)
        terms = {"soft": (1 - self.hard_weight) * soft}
        if self.hard_weight:
            terms["hard"] = self.hard_weight * F.cross_entropy(logits.float() / self.temperature, label)
        return self.log_terms(terms, len(label), index)

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """SGD 0.01, momentum 0.9."""
        return SGD(parameters, lr=0.01, momentum=0.9)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Half the rate every 10 epochs."""
        return StepLR(optimizer, step_size=10, gamma=0.5)
