"""How far measured shares and means may be off."""

import math

import torch
from torch import Tensor


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927).

    Example:
        >>> [round(bound, 4) for bound in wilson_interval(0, 100)]
        [0.0, 0.037]
    """
    z = 1.959964
    p = hits / count
    centre, spread = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap_interval(values: Tensor, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of a mean over problems, (N,); the draws are fixed.

    Example:
        >>> low, high = bootstrap_interval(torch.tensor([0.0, 0.5, 1.0, 1.0]))
        >>> low < 0.625 < high
        True
    """
    generator = torch.Generator().manual_seed(0)
    means = [values[torch.randint(len(values), (len(values),), generator=generator)].mean() for _ in range(resamples)]
    low, high = torch.stack(means).double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
