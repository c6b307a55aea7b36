"""What an attack raises: the loss of each sample. A positive margin is a success."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["ce", "margin", "dlr"]


def margin(logits: Tensor, label: Tensor, target: Tensor | None = None) -> Tensor:
    """``max_{j != y} z_j - z_y`` (B,), or ``z_t - max_{j != t} z_j`` for a target; logits (B, C)."""
    aim = label if target is None else target
    own = logits.gather(1, aim[:, None]).squeeze(1)
    # -inf and not 0 for the masked class: a product with the one-hot lets 0 win where all logits are negative.
    other = logits.scatter(1, aim[:, None], -torch.inf).amax(1)
    return other - own if target is None else own - other


def dlr(logits: Tensor, label: Tensor, target: Tensor | None = None) -> Tensor:
    """Difference of logits ratio (Croce and Hein, arXiv:2003.01690), invariant to shift and scale of logits (B, C).

    ``(max_{j != y} z_j - z_y) / (z_(1) - z_(3))``, or ``(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`` for a target.
    Where the label ranks third or lower the ratio is constant, or nearly: there the plain margin stands.
    """
    top = logits.topk(3 if target is None else 4, dim=1).values
    own = logits.gather(1, label[:, None]).squeeze(1)
    if target is None:
        gap = margin(logits, label)
        ratio = gap / (top[:, 0] - top[:, 2]).clamp(min=1e-12)
        return torch.where(own > top[:, 2], ratio, gap)
    gap = logits.gather(1, target[:, None]).squeeze(1) - own
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp(min=1e-12)


def objective(loss: Loss, logits: Tensor, label: Tensor, target: Tensor | None, temperature: float) -> Tensor:
    """The loss of each sample (B,), to be raised. Only cross-entropy depends on the temperature."""
    if loss == "margin":
        return margin(logits, label, target)
    if loss == "dlr":
        return dlr(logits, label, target)
    aim, sign = (label, 1) if target is None else (target, -1)
    return sign * F.cross_entropy(logits / temperature, aim, reduction="none")


def min_classes(loss: Loss, target: Tensor | None) -> int:
    """Fewest classes for which the loss is defined."""
    return 2 if loss != "dlr" else 3 if target is None else 4
