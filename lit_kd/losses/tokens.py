"""What the losses of language models share: which tokens count, the reduction over them, and what log 0 is."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

TokenReduction = Literal["token", "sequence", "sum", "none"]

LOG_ZERO = -1e4  # stands for log 0: times a probability of 0 it is 0, where -inf would be NaN


def check_tokens(logits: Tensor, mask: Tensor | None, temperature: float, reduction: str) -> None:
    """Raise a ValueError unless mask, temperature and reduction fit logits (..., V)."""
    if mask is not None and mask.shape != logits.shape[:-1]:
        raise ValueError(
            f"mask must have one value a token, {tuple(logits.shape[:-1])} for logits {tuple(logits.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if reduction not in ("token", "sequence", "sum", "none"):
        raise ValueError(f'reduction must be "token", "sequence", "sum" or "none", got {reduction!r}')
    if reduction == "sequence" and logits.ndim != 3:
        raise ValueError(f'reduction="sequence" needs logits (B, S, V), got {tuple(logits.shape)}: use "token"')


def counted(values: Tensor, mask: Tensor | None) -> Tensor:
    """Rows (N, D) of the tokens that count, of values (..., D). What is masked may be NaN."""
    return values.reshape(-1, values.shape[-1]) if mask is None else values[mask.bool()]


def reduce_tokens(per_token: Tensor, shape: torch.Size, mask: Tensor | None, reduction: TokenReduction) -> Tensor:
    """Reduce the terms (N,) of the tokens counted among those of ``shape``; nothing counted gives 0 with a graph."""
    if reduction == "sum":
        return per_token.sum()
    if reduction == "token":
        return per_token.sum() / max(len(per_token), 1)
    real = per_token.new_ones(shape, dtype=torch.bool) if mask is None else mask.bool()
    terms = per_token.new_zeros(shape).masked_scatter(real, per_token)  # 0 where masked
    if reduction == "none":
        return terms
    lengths = real.sum(1)
    return (terms.sum(1) / lengths.clamp(min=1)).sum() / (lengths > 0).sum().clamp(min=1)


def warn_of_infinity(p: Tensor, log_q: Tensor) -> None:
    """Warn where q forbids what p does not: KL(p || q) is infinite."""
    if log_q.numel() and log_q.amin() <= LOG_ZERO and (p[log_q <= LOG_ZERO] > 0).any():
        warnings.warn(
            f"A token of probability 0 in one network has some in the other: the divergence is infinite, log 0 counts "
            f"as {LOG_ZERO:.0f}. Forbid (-inf) a token in both networks or in neither.",
            stacklevel=2,
        )
