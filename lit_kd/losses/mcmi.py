"""Maximum conditional mutual information (Ye et al., arXiv:2401.08732): the teacher's objective.

P_x is the softmax of a sample's logits, Q_y the mean of P_x over the samples of class y (its centroid).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lit_kd.checks import check_not_negative
from lit_kd.losses.shared import Reduction, full_precision, reduce

MIN_PROBABILITY = 1e-12  # of a centroid: its logarithm stays finite where a softmax underflowed


@full_precision
def class_centroids(logits: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    r"""Mean softmax of each class.

    .. math:: Q_y = \frac{1}{|D_y|} \sum_{x \in D_y} P_x

    Args:
        logits: (N, C) with C = num_classes.
        labels: (N,) int64.
        num_classes: C.

    Returns:
        (C, C); row y is Q_y and sums to 1.

    Raises:
        ValueError: logits have another number of classes, or a class has no sample.

    Example:
        >>> import torch
        >>> p = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.2, 0.8]])
        >>> class_centroids(p.log(), torch.tensor([0, 0, 1]), num_classes=2)
        tensor([[0.6000, 0.4000],
                [0.2000, 0.8000]])
    """
    if logits.shape[1] != num_classes:
        raise ValueError(f"logits have {logits.shape[1]} classes, but num_classes is {num_classes}")
    empty = (labels.bincount(minlength=num_classes) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"every class needs a sample for its centroid, but these have none: {empty}")
    return _class_means(logits.softmax(1), labels, num_classes)


@full_precision
def surrogate_kl(logits: Tensor, labels: Tensor, centroids: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Divergence of the samples from given centroids, in nats.

    .. math:: mean_b \, KL(P_b \| Q_{y_b})

    It is the CMI if Q are the centroids of these very samples, and above it otherwise.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        centroids: (C, C), clamped to 1e-12 from below.
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: logits and centroids have different numbers of classes.

    Example:
        >>> import torch
        >>> surrogate_kl(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
        tensor(0.1438)
    """
    if logits.shape[1] != centroids.shape[1]:
        raise ValueError(f"logits have {logits.shape[1]} classes, but centroids {centroids.shape[1]}")
    log_p = logits.log_softmax(1)
    log_q = centroids.clamp(min=MIN_PROBABILITY).log()[labels]
    return reduce((log_p.exp() * (log_p - log_q)).sum(1), reduction)


@full_precision
def conditional_mutual_information(
    logits: Tensor, labels: Tensor, centroids: Tensor | None = None, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Conditional mutual information of input and prediction given the class, in nats.

    .. math:: I(X; \hat Y | Y) = \frac1N \sum_x KL(P_x \| Q_{y_x})

    Args:
        logits: (N, C).
        labels: (N,) int64; a class may have no sample.
        centroids: (C, C); those of the same samples if None.
        reduction: "mean" over the samples, or "none" for (N,).

    Raises:
        ValueError: logits and centroids have different numbers of classes.

    Example:
        >>> import torch
        >>> p = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
        >>> conditional_mutual_information(p.log(), torch.tensor([0, 0]))
        tensor(0.1017)
    """
    if centroids is None:
        centroids = _class_means(logits.softmax(1), labels, logits.shape[1])
    return surrogate_kl(logits, labels, centroids, reduction=reduction)


@full_precision
def mcmi_loss(
    logits: Tensor, labels: Tensor, centroids: Tensor, weight: float, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Teacher objective to minimise: cross entropy less the weighted divergence from the centroids.

    .. math:: CE(z, y) - \lambda \, mean_b \, KL(P_b \| Q_{y_b})

    The minus sign is here: a positive weight raises the CMI.

    Args:
        logits: (B, C).
        labels: (B,) int64.
        centroids: (C, C), held constant.
        weight: lambda >= 0; 0 is the cross entropy.
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the weight is negative, or logits and centroids have different numbers of classes.

    Example:
        >>> import torch
        >>> centroids = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
        >>> mcmi_loss(torch.tensor([[0.9, 0.1]]).log(), torch.tensor([0]), centroids, weight=0.25)
        tensor(0.0763)
    """
    check_not_negative(weight=weight)
    cross_entropy = F.cross_entropy(logits, labels, reduction=reduction)
    return cross_entropy - weight * surrogate_kl(logits, labels, centroids, reduction=reduction)


def _class_means(probabilities: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean row of each class; a row of zeros for a class without samples."""
    sums = probabilities.new_zeros(num_classes, probabilities.shape[1]).index_add(0, labels, probabilities)
    return sums / sums.sum(1, keepdim=True).clamp(min=MIN_PROBABILITY)
