"""Balls around images: norms, steps, projections. Numbers of single samples broadcast over (B, C, H, W)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Norm = Literal["linf", "l2"]


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values.view(-1, *[1] * (like.dim() - 1))


def l2_norm(difference: Tensor) -> Tensor:
    """(B,) Euclidean norms."""
    return difference.flatten(1).norm(dim=1)


def project(candidate: Tensor, image: Tensor, eps: float, norm: Norm) -> Tensor:
    """The nearest point of the ball around ``image``, clipped to [0, 1] (which never leaves the ball)."""
    if norm == "linf":
        return torch.minimum(torch.maximum(candidate, image - eps), image + eps).clamp(0, 1)
    difference = candidate - image
    scale = (eps / l2_norm(difference).clamp(min=1e-12)).clamp(max=1)
    return (image + difference * per_sample(scale, image)).clamp(0, 1)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Steepest ascent of length 1 in the norm; 0 where the gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    return gradient / per_sample(l2_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny), gradient)


def random_start(image: Tensor, index: Tensor, seed: int, restart: int, eps: float, norm: Norm) -> Tensor:
    """A uniform point of the ball, clipped to [0, 1]: a function of (seed, restart, index) and not of the batch."""
    shape = tuple(image.shape[1:])
    rows = []
    for i in index.tolist():
        generator = np.random.default_rng([seed, restart, i])
        if norm == "linf":
            rows.append(generator.uniform(-eps, eps, shape))
        else:
            point = generator.standard_normal(shape)
            radius = eps * generator.uniform() ** (1 / point.size)
            rows.append(point * (radius / np.linalg.norm(point)))
    return project(image + torch.from_numpy(np.stack(rows)).to(image), image, eps, norm)


def is_zero(gradient: Tensor) -> Tensor:
    """(B,) bool: the whole gradient of the sample is exactly 0."""
    return (gradient == 0).flatten(1).all(1)
