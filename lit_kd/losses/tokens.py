"""What the losses of language models share: which tokens count, the reduction over them, and what log 0 is."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor

from lit_kd.checks import check_choice, check_positive

TokenReduction = Literal["token", "sequence", "sum", "none"]

LOG_ZERO = -1e4  # stands for log 0: times a probability of 0 it is 0, where -inf would be NaN


def check_tokens(logits: Tensor, mask: Tensor | None, temperature: float, reduction: str) -> None:
    """Raise a ValueError unless mask, temperature and reduction fit logits (..., V)."""
    if mask is not None and mask.shape != logits.shape[:-1]:
        raise ValueError(
            f"mask must have one value a token, {tuple(logits.shape[:-1])} for logits {tuple(logits.shape)}, "
            f"got {tuple(mask.shape)}"
        )
    check_positive(temperature=temperature)
    check_choice(("token", "sequence", "sum", "none"), reduction=reduction)
    if reduction == "sequence" and logits.ndim != 3:
        raise ValueError(f'reduction="sequence" needs logits (B, S, V), got {tuple(logits.shape)}: use "token"')


def check_pair(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Raise a ValueError unless both are logits of the same positions over one vocabulary."""
    student, teacher = student_logits.shape, teacher_logits.shape
    if student[-1] != teacher[-1]:
        common = min(student[-1], teacher[-1])
        raise ValueError(
            f"student_logits are over {student[-1]} tokens and teacher_logits over {teacher[-1]}: if the tokenizer is "
            f"one and only padding differs, cut both to the common {common}, logits[..., :{common}]"
        )
    if student != teacher:
        raise ValueError(
            "student_logits and teacher_logits must be of the same positions, (..., V), "
            f"got {tuple(student)} and {tuple(teacher)}"
        )


def log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (N, V) of rows of logits, float32 or float64, LOG_ZERO instead of -inf."""
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    scaled = wide if temperature == 1 else wide / temperature
    # Not log_softmax: on a CPU it adds up V terms one after another, and a KL of 0.001 at V = 50,257 is 17 % off.
    return (scaled - scaled.logsumexp(1, keepdim=True)).nan_to_num_(nan=math.nan, neginf=LOG_ZERO)


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
