"""The divergences of single tokens as objects with their settings, for a configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lit_kd.losses.divergences import (
    AdaptiveVariant,
    adaptive_kl,
    forward_kl,
    generalized_jsd,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    symmetric_kl,
    total_variation,
)


class TokenDivergence(nn.Module):
    """A divergence of :mod:`lit_kd.losses.divergences` with its settings; wrong ones raise its ValueError at once.

    Args:
        function: the divergence.
        settings: its arguments beyond logits, mask, temperature and reduction.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> GeneralizedJSD(beta=0.9)(student, teacher)
        tensor([0.0080])
    """

    def __init__(self, function: Callable[..., Tensor], **settings: Any) -> None:
        super().__init__()
        self.function = partial(function, reduction="none", **settings)
        self(torch.zeros(1, 2), torch.zeros(1, 2))

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Its value (N,) for rows of logits (N, V)."""
        return self.function(student_logits, teacher_logits, temperature=temperature)


class ForwardKL(TokenDivergence):
    """See :func:`lit_kd.losses.forward_kl`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> ForwardKL()(student, teacher)
        tensor([0.0725])
    """

    def __init__(self) -> None:
        super().__init__(forward_kl)


class ReverseKL(TokenDivergence):
    """See :func:`lit_kd.losses.reverse_kl`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> ReverseKL()(student, teacher)
        tensor([0.0923])
    """

    def __init__(self) -> None:
        super().__init__(reverse_kl)


class SymmetricKL(TokenDivergence):
    """See :func:`lit_kd.losses.symmetric_kl`.

    Args:
        reverse_weight: w of KL(q || p), in [0, 1].

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> SymmetricKL()(student, teacher)
        tensor([0.0824])
    """

    def __init__(self, reverse_weight: float = 0.5) -> None:
        super().__init__(symmetric_kl, reverse_weight=reverse_weight)


class GeneralizedJSD(TokenDivergence):
    """See :func:`lit_kd.losses.generalized_jsd`.

    Args:
        beta: share of the teacher in the mixture, in [0, 1].

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> GeneralizedJSD()(student, teacher)
        tensor([0.0200])
    """

    def __init__(self, beta: float = 0.5) -> None:
        super().__init__(generalized_jsd, beta=beta)


class SkewForwardKL(TokenDivergence):
    """See :func:`lit_kd.losses.skew_forward_kl`.

    Args:
        alpha: share of the teacher in the mixture, in [0, 1).

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> SkewForwardKL()(student, teacher)
        tensor([0.0608])
    """

    def __init__(self, alpha: float = 0.1) -> None:
        super().__init__(skew_forward_kl, alpha=alpha)


class SkewReverseKL(TokenDivergence):
    """See :func:`lit_kd.losses.skew_reverse_kl`.

    Args:
        alpha: share of the student in the mixture, in [0, 1).

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> SkewReverseKL()(student, teacher)
        tensor([0.0700])
    """

    def __init__(self, alpha: float = 0.1) -> None:
        super().__init__(skew_reverse_kl, alpha=alpha)


class TotalVariation(TokenDivergence):
    """See :func:`lit_kd.losses.total_variation`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> TotalVariation()(student, teacher)
        tensor([0.1500])
    """

    def __init__(self) -> None:
        super().__init__(total_variation)


class AdaptiveKL(TokenDivergence):
    """See :func:`lit_kd.losses.adaptive_kl`.

    Args:
        mu: cumulative probability of the head, or in "dskd" of the tail.
        variant: "official" or "dskd".

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> AdaptiveKL()(student, teacher)
        tensor([0.0857])
    """

    def __init__(self, mu: float = 0.5, variant: AdaptiveVariant = "official") -> None:
        super().__init__(adaptive_kl, mu=mu, variant=variant)
