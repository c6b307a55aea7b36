"""Signs of collapse of self-supervised features and of visual words: plain functions, to watch rather than to train."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_kd.losses.shared import full_precision


@full_precision
def effective_rank(features: Tensor) -> Tensor:
    r"""Effective rank of a matrix (Roy and Vetterli, EUSIPCO 2007), as RankMe (arXiv:2210.02885) uses it for features.

    .. math:: \exp\Big(-\sum_i p_i \ln p_i\Big), \quad p_i = \sigma_i / \sum_j \sigma_j

    From 1, where all features are multiples of one, to min(N, C), where all singular values are equal. The features
    are not centred: of features that are all the same, what is left without their mean is rounding noise of high rank.

    Args:
        features: (N, C) with singular values sigma.

    Returns:
        A scalar; 0 for a matrix of zeros.

    Example:
        >>> round(effective_rank(torch.eye(5)).item(), 4)
        5.0
    """
    singular = torch.linalg.svdvals(features)
    p = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    return torch.special.entr(p).sum().exp() * (singular.sum() > 0)


@full_precision
def mean_pairwise_cosine(features: Tensor) -> Tensor:
    r"""Mean cosine over all pairs of different samples: 1 where all features point one way.

    .. math:: \frac{|\sum_b \hat f_b|^2 - \sum_b |\hat f_b|^2}{N (N - 1)}, \quad \hat f = f / |f|

    Args:
        features: f, (N, C) with N >= 2; a row of zeros has cosine 0 with every other.

    Returns:
        A scalar in [-1, 1]; NaN for fewer than two samples.

    Example:
        >>> mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))
        tensor(0.3333)
    """
    unit = F.normalize(features, dim=1)
    pairs = len(unit) * (len(unit) - 1)
    return (unit.sum(0).square().sum() - unit.square().sum()) / (pairs or torch.nan)


@full_precision
def feature_spread(features: Tensor) -> Tensor:
    r"""Mean standard deviation of the normalised features, in units of its healthy value (SimSiam, arXiv:2011.10566).

    .. math:: \sqrt{C} \, mean_c \, std_b(\hat f_{bc}), \quad \hat f = f / |f|

    Args:
        features: f, (N, C).

    Returns:
        A scalar: near 1 for directions that are spread evenly, 0 where all features point one way.

    Example:
        >>> feature_spread(torch.ones(4, 3))
        tensor(0.)
    """
    unit = F.normalize(features, dim=1)
    return unit.std(0, correction=0).mean() * unit.shape[1] ** 0.5


@full_precision
def words_in_use(target: Tensor, threshold: float | None = None) -> Tensor:
    r"""Number of visual words whose mean share is above a threshold.

    .. math:: \#\{k : mean_b \, y_{bk} > t\}, \quad t = 1 / (10 K)

    Args:
        target: y, bags of words or codes (B, K), rows sum to 1.
        threshold: t; None: a tenth of what each of K equally used words would have.

    Returns:
        An int64 scalar.

    Example:
        >>> words_in_use(torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
        tensor(2)
    """
    return (target.mean(0) > (0.1 / target.shape[1] if threshold is None else threshold)).sum()


@full_precision
def nearest_words(features: Tensor, words: Tensor, chunk: int = 4096) -> tuple[Tensor, Tensor]:
    r"""Index of the nearest word of each feature, and their squared Euclidean distance.

    .. math:: argmin_k \, d_k, \quad d_k = |f|^2 - 2 \langle f, w_k \rangle + |w_k|^2

    Args:
        features: f, (N, C).
        words: w, (K, C).
        chunk: features compared at a time: the largest tensor is (chunk, K).

    Returns:
        Indices (N,) int64 and distances (N,), not below 0.

    Example:
        >>> nearest_words(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 0.5]]))
        (tensor([2]), tensor([0.2500]))
    """
    norms = words.square().sum(1)
    parts = [torch.addmm(norms, part, words.T, alpha=-2).min(1) for part in features.split(chunk)]
    if not parts:
        return features.new_zeros(0, dtype=torch.int64), features.new_zeros(0)
    least = torch.cat([part.values for part in parts]) + features.square().sum(1)
    return torch.cat([part.indices for part in parts]), least.clamp(min=0)
