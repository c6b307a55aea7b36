"""Losses between feature maps (B, C, H, W). Lists hold one map a stage; the stages are summed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_kd.losses.shared import Reduction, check_same_batch, check_same_shape, full_precision, reduce


@full_precision
def hint_loss(student_feature: Tensor, teacher_feature: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """FitNets' hint (Romero et al., arXiv:1412.6550): mean squared error over all elements.

    Args:
        student_feature: (B, ...), what the regressor made of the student's feature.
        teacher_feature: of the same shape.
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the two shapes differ.

    Example:
        >>> hint_loss(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 2.0))
        tensor(4.)
    """
    check_same_shape(student_feature, teacher_feature)
    return reduce(_squared_error(student_feature, teacher_feature), reduction)


@full_precision
def attention_transfer_loss(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Attention transfer (Zagoruyko and Komodakis, arXiv:1612.03928).

    .. math:: \sum_{stages} mean_{hw} (a_s / |a_s| - a_t / |a_t|)^2, \quad a = mean_c A_c^2

    Args:
        student_features: list of (B, C_s, H, W); channels may differ from the teacher's, and of two sizes the
            larger map is average pooled to the smaller.
        teacher_features: as many (B, C_t, H', W').
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the numbers of stages or the batch sizes differ.

    Example:
        >>> maps = [torch.ones(2, 3, 8, 8)]
        >>> attention_transfer_loss(maps, [torch.full((2, 5, 4, 4), 7.0)])
        tensor(0.)
    """
    stages = []
    for student, teacher in paired_stages(student_features, teacher_features):
        maps = pool_to_smaller(student, teacher)
        attention = [F.normalize(feature.square().mean(1).flatten(1)) for feature in maps]
        stages.append(_squared_error(*attention))
    return reduce(torch.stack(stages).sum(0), reduction)


@full_precision
def similarity_preserving_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    r"""Similarity preserving distillation (Tung and Mori, arXiv:1907.09682).

    .. math:: \sum_{stages} |G_s - G_t|_F^2 / B^2

    G is the Gram matrix of the flattened features of the batch, each row scaled to unit length.

    Args:
        student_features: list of (B, ...); sizes and channels may differ from the teacher's.
        teacher_features: as many (B, ...).

    Raises:
        ValueError: the numbers of stages or the batch sizes differ.

    Example:
        >>> maps = [torch.eye(2).view(2, 2, 1, 1)]
        >>> similarity_preserving_loss(maps, [torch.ones(2, 3, 4, 4)])
        tensor(0.2929)
    """
    stages = []
    for student, teacher in paired_stages(student_features, teacher_features):
        student, teacher = student.flatten(1), teacher.flatten(1)
        stages.append(F.mse_loss(F.normalize(student @ student.T), F.normalize(teacher @ teacher.T)))
    return torch.stack(stages).sum()


@full_precision
def nst_loss(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Neuron selectivity transfer (Huang and Wang, arXiv:1707.01219), kernel :math:`k(x, y) = (x \cdot y)^2`.

    .. math:: \sum_{stages} mean \, k(s, s) + mean \, k(t, t) - 2 \, mean \, k(s, t)

    s and t are the maps of single channels, flattened and of unit length; the means run over the pairs of
    channels of one sample.

    Args:
        student_features: list of (B, C_s, H, W); the larger of two maps is average pooled to the smaller.
        teacher_features: as many (B, C_t, H', W').
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the numbers of stages or the batch sizes differ.

    Example:
        >>> maps = [torch.ones(2, 3, 8, 8)]
        >>> nst_loss(maps, [torch.ones(2, 5, 4, 4)])
        tensor(0.)
    """
    stages = []
    for student, teacher in paired_stages(student_features, teacher_features):
        s, t = (F.normalize(feature.flatten(2), dim=2) for feature in pool_to_smaller(student, teacher))
        stages.append(_polynomial_kernel(s, s) + _polynomial_kernel(t, t) - 2 * _polynomial_kernel(s, t))
    return reduce(torch.stack(stages).sum(0), reduction)


@full_precision
def hierarchical_context_loss(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, reduction: Reduction = "mean"
) -> Tensor:
    r"""ReviewKD's hierarchical context loss (Chen et al., arXiv:2104.09044).

    .. math:: \sum_{stages} \sum_l w_l \, MSE(pool_l s, pool_l t) / \sum_l w_l

    The levels l are the map itself (weight 1) and averages to 4x4, 2x2 and 1x1, as far as they are smaller
    than the map; each has half the weight of the one before.

    Args:
        student_features: list of (B, C, H, W), already of the teacher's shapes.
        teacher_features: as many of the same shapes.
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the numbers of stages or the shapes differ.

    Example:
        >>> hierarchical_context_loss([torch.zeros(2, 3, 8, 8)], [torch.ones(2, 3, 8, 8)])
        tensor(1.)
    """
    stages = []
    for student, teacher in paired_stages(student_features, teacher_features):
        check_same_shape(student, teacher)
        difference = student - teacher  # pooling is linear: one pooled map a level, not two
        loss, weight, total = difference.square().flatten(1).mean(1), 1.0, 1.0
        for size in (4, 2, 1):
            if size < difference.shape[2]:
                weight /= 2
                total += weight
                loss = loss + weight * F.adaptive_avg_pool2d(difference, size).square().flatten(1).mean(1)
        stages.append(loss / total)
    return reduce(torch.stack(stages).sum(0), reduction)


def paired_stages(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Stages of student and teacher side by side, after checking that they belong together."""
    if isinstance(student_features, Tensor) or isinstance(teacher_features, Tensor):
        raise ValueError("student_features and teacher_features must be lists of maps: put a single tensor in a list")
    if len(student_features) != len(teacher_features) or not student_features:
        raise ValueError(
            "student_features and teacher_features must be lists of as many maps, "
            f"got {len(student_features)} and {len(teacher_features)}"
        )
    stages = list(zip(student_features, teacher_features, strict=True))
    for student, teacher in stages:
        check_same_batch(student, teacher)
    return stages


def pool_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average pool the larger of two maps (B, C, H, W) to the size of the smaller."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    if student.shape[2:] != size:
        student = F.adaptive_avg_pool2d(student, size)
    if teacher.shape[2:] != size:
        teacher = F.adaptive_avg_pool2d(teacher, size)
    return student, teacher


def _squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of each sample, (B,)."""
    return (x - y).square().flatten(1).mean(1)


def _polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Mean over channel pairs of (x_i . y_j)^2 for (B, C, N) and (B, C', N), (B,)."""
    return (x @ y.transpose(1, 2)).square().mean((1, 2))
