"""Losses between the class logits of student and teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_kd.checks import check_not_negative, check_positive
from lit_kd.losses.shared import Reduction, full_precision, reduce


@full_precision
def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Knowledge distillation (Hinton et al., arXiv:1503.02531).

    .. math:: T^2 \, KL(softmax(z_t / T) \| softmax(z_s / T))

    The KL is a sum over classes, in nats.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the two shapes differ, or the temperature isn't positive.

    Example:
        >>> kd_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[4.0, 0.0]]), temperature=4.0)
        tensor(1.7751)
    """
    _check_logits(student_logits, teacher_logits, temperature)
    return temperature**2 * reduce(_kl(teacher_logits / temperature, student_logits / temperature), reduction)


@full_precision
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Decoupled knowledge distillation (Zhao et al., arXiv:2203.08679).

    .. math:: T^2 [\alpha \, KL(b_t \| b_s) + \beta \, KL(\hat p_t \| \hat p_s)]

    b = (p_y, 1 - p_y) is the binary distribution "target or not", :math:`\hat p` the distribution over the other
    classes alone. All in log space, in nats: value and gradient stay finite where a probability rounds to 0.

    Args:
        student_logits: (B, C) with C > 2.
        teacher_logits: (B, C).
        labels: (B,) int64, the target classes.
        alpha: weight of the target-class part.
        beta: weight of the part of the other classes.
        temperature: T > 0.
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the two shapes differ, C is below 3, or the temperature isn't positive.

    Example:
        >>> teacher = torch.tensor([[3.0, 1.0, 0.0]])
        >>> dkd_loss(torch.zeros(1, 3), teacher, torch.tensor([0]), temperature=1.0)
        tensor(1.4446)
    """
    _check_logits(student_logits, teacher_logits, temperature)
    check_not_negative(alpha=alpha, beta=beta)
    num_classes = student_logits.shape[1]
    if num_classes < 3:
        raise ValueError(f"dkd_loss needs at least 3 classes, got {num_classes}: use kd_loss")
    labels = labels.unsqueeze(1)
    others = torch.arange(num_classes - 1, device=labels.device)
    others = others + (others >= labels)  # (B, C - 1): every class but the target
    student, teacher = student_logits / temperature, teacher_logits / temperature
    target_part = _kl(_binary_logits(teacher, labels, others), _binary_logits(student, labels, others))
    other_part = _kl(teacher.gather(1, others), student.gather(1, others))
    return temperature**2 * reduce(alpha * target_part + beta * other_part, reduction)


@full_precision
def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    r"""DIST, distillation from a stronger teacher (Huang et al., arXiv:2205.10536).

    .. math:: T^2 [\beta (1 - mean_b \rho(s_b, t_b)) + \gamma (1 - mean_c \rho(s_{:c}, t_{:c}))]

    rho is Pearson's correlation of the softened probabilities, per sample over the classes and per class over
    the batch. A constant row or column (a batch of one) correlates with nothing and counts as 0.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        beta: weight of the relation between classes.
        gamma: weight of the relation within a class.
        temperature: T > 0.

    Raises:
        ValueError: the two shapes differ, or the temperature isn't positive.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])
        >>> dist_loss(logits, logits).abs() < 1e-5
        tensor(True)
    """
    _check_logits(student_logits, teacher_logits, temperature)
    check_not_negative(beta=beta, gamma=gamma)
    student, teacher = (student_logits / temperature).softmax(1), (teacher_logits / temperature).softmax(1)
    inter = 1 - _pearson(student, teacher, dim=1).mean()
    intra = 1 - _pearson(student, teacher, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


@full_precision
def logit_standardization_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Logit standardisation (Sun et al., arXiv:2403.01427): :func:`kd_loss` of z-scored logits.

    .. math:: z \to (z - mean_c z) / (std_c z + 10^{-7})

    The standard deviation is the unbiased one, over the classes of each sample.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the two shapes differ, or the temperature isn't positive.

    Example:
        >>> teacher = torch.tensor([[1.0, 0.0, 2.0]])
        >>> logit_standardization_kd_loss(10 * teacher + 5, teacher) < 1e-6
        tensor(True)
    """
    student, teacher = (
        (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)
        for logits in (student_logits, teacher_logits)
    )
    return kd_loss(student, teacher, temperature, reduction=reduction)


@full_precision
def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Cross-entropy with the teacher's soft labels (defensive distillation, Papernot et al., arXiv:1511.04508).

    .. math:: -\sum_k q_k \log softmax(z_s / T)_k, \quad q = softmax(z_t / T)

    In nats, without T^2: ``kd_loss / T^2`` plus the entropy of q. The gradient in z_s is
    ``(softmax(z_s / T) - q) / T``.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0.
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the two shapes differ, or the temperature isn't positive.

    Example:
        >>> soft_cross_entropy(torch.zeros(1, 2), torch.tensor([[5.0, 0.0]]), temperature=20.0)
        tensor(0.6931)
    """
    _check_logits(student_logits, teacher_logits, temperature)
    q, log_s = (teacher_logits / temperature).softmax(1), (student_logits / temperature).log_softmax(1)
    return reduce(-(q * log_s).sum(1), reduction)


def _check_logits(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "student_logits and teacher_logits must be (B, C) of the same samples and classes, "
            f"got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    check_positive(temperature=temperature)


def _kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(teacher || student) of each sample, (B,)."""
    divergence = F.kl_div(
        student_logits.log_softmax(1), teacher_logits.log_softmax(1), reduction="none", log_target=True
    )
    return divergence.sum(1)


def _binary_logits(logits: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """Logits (B, 2) of "target" and "any other class": log of a sum of exponentials, never log(1 - p)."""
    return torch.cat([logits.gather(1, labels), logits.gather(1, others).logsumexp(1, keepdim=True)], dim=1)


def _pearson(x: Tensor, y: Tensor, dim: int) -> Tensor:
    return F.cosine_similarity(x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True), dim, eps=1e-8)
