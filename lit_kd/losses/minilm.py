"""Self-attention relations (MiniLM, Wang et al., arXiv:2002.10957; MiniLMv2, Wang et al., arXiv:2012.15828).

A relation compares the tokens of a sequence with each other by two of the vectors Q, K, V of a self-attention layer.
It has one row of tokens for each token, whatever the network's width: students of any size can be given the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_kd.checks import check_choice, check_whole, check_whole_or_none
from lit_kd.losses.shared import full_precision

Vector = Literal["q", "k", "v"]
RelationReduction = Literal["sample", "token"]

MINILM_V1: tuple[tuple[Vector, Vector], ...] = (("q", "k"), ("v", "v"))  # with the attention heads as relation heads
MINILM_V2: tuple[tuple[Vector, Vector], ...] = (("q", "q"), ("k", "k"), ("v", "v"))

_SCORES_AT_ONCE = {"cpu": 2**19}  # 2 MiB: they stay in the cache
_SCORES_AT_ONCE_ELSEWHERE = 2**25  # 128 MiB


@full_precision
def relation_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    mask: Tensor,
    relations: Sequence[tuple[Vector, Vector]],
    heads: int,
    reduction: RelationReduction = "sample",
    *,
    chunk: int | None = None,
) -> Tensor:
    r"""Divergence of the student's from the teacher's self-attention relations, in nats, summed over the relations.

    .. math:: \sum_{(x,y)} mean_b \frac{1}{A n_b} \sum_{a,i} KL(P^{xy}_{bai} \| R^{xy}_{bai}), \quad
        P^{xy}_{ba} = softmax_j\!\left(\frac{X_{ba} Y_{ba}^\top}{\sqrt d}\right)

    R is the same of the student. The vectors of all heads, (B, S, H), are split anew into A relation heads of
    d = H / A, each network's own. Columns and rows of padding take no part, on whatever side it is; sequences that
    are all padding are not counted. Relations q-k and v-v with A = the attention heads are MiniLM; q-q, k-k and v-v
    with A = 48 or 64 are MiniLMv2. The gradient reaches the student only, and once (no second derivative). It has a
    closed form, (R - P) / (A n_b) of the scores, and is taken together with the value, so that no S x S tensor
    outlives its chunk.

    Args:
        student: vectors "q", "k", "v" that the relations name, each (B, S, H_s).
        teacher: likewise (B, S, H_t).
        mask: (B, S), 1 or True for real tokens, 0 for padding.
        relations: pairs of names: rows and columns of the relation in both networks.
        heads: A, divides both widths.
        reduction: "sample" as above; "token": sum over all rows of the batch / (A * real tokens of the batch).
        chunk: relation heads held at once, 4 * B * S^2 * chunk bytes a tensor; None: as many as use the device well.

    Raises:
        ValueError: no relation or one of unknown vectors, shapes that do not fit, heads that do not divide a width, an
            unknown reduction, or a chunk below 1.

    Example:
        >>> teacher = {"v": torch.tensor([[[2.0], [0.0]]])}
        >>> student = {"v": torch.tensor([[[0.0], [0.0]]])}
        >>> relation_loss(student, teacher, torch.ones(1, 2), [("v", "v")], heads=1)
        tensor(0.3015)
    """
    _check(student, teacher, mask, relations, heads, reduction, chunk)
    real = mask.bool().to(student[relations[0][0]].dtype)
    lengths = real.sum(1, keepdim=True)  # (B, 1)
    divisor = (lengths > 0).sum() * lengths.clamp(min=1) if reduction == "sample" else lengths.sum()
    rows = real / (heads * divisor).clamp(min=1)  # (B, S): what a row counts
    terms = [_Relation.apply(student[x], student[y], teacher[x], teacher[y], rows, heads, chunk) for x, y in relations]
    return torch.stack(terms).sum()


class _Relation(torch.autograd.Function):
    """sum_rows weight * KL(P || R), with its gradient taken in the forward."""

    @staticmethod
    def forward(
        ctx: Any,
        student_x: Tensor,
        student_y: Tensor,
        teacher_x: Tensor,
        teacher_y: Tensor,
        rows: Tensor,
        heads: int,
        chunk: int | None,
    ) -> Tensor:
        batch, length = rows.shape
        padding = rows == 0
        sx, sy = _split(student_x, padding, heads), _split(student_y, padding, heads)
        tx, ty = (_split(x, padding, heads).to(sx.dtype) for x in (teacher_x, teacher_y))
        scale = 1 / math.sqrt(sx.shape[2])
        sx, tx = sx * scale, tx / math.sqrt(tx.shape[2])  # before the product: it is the smaller tensor
        weight = rows.repeat(heads, 1)[:, :, None]  # (A * B, S, 1)
        masked = padding.repeat(heads, 1)[:, None]  # (A * B, 1, S)
        if chunk is None:
            limit = _SCORES_AT_ONCE.get(rows.device.type, _SCORES_AT_ONCE_ELSEWHERE)
            size = max(1, limit // length**2)
        else:
            size = chunk * batch

        total = sx.new_zeros(())
        differentiate = any(ctx.needs_input_grad[:2])
        gradient_x, gradient_y = (torch.empty_like(sx), torch.empty_like(sy)) if differentiate else (sx, sy)
        for start in range(0, heads * batch, size):
            part = slice(start, start + size)
            log_p = _log_relation(tx[part], ty[part], masked[part])
            log_r = _log_relation(sx[part], sy[part], masked[part])
            p = log_p.exp()
            kl = torch.linalg.vecdot(p, log_p.sub_(log_r))  # (n, S)
            total += torch.dot(kl.flatten(), weight[part].flatten())
            if differentiate:
                slope = log_r.exp_().sub_(p).mul_(weight[part])  # (R - P) of the scores
                torch.bmm(slope, sy[part], out=gradient_x[part])
                torch.bmm(slope.mT, sx[part], out=gradient_y[part])
        if differentiate:
            ctx.save_for_backward(_join(gradient_x * scale, batch), _join(gradient_y, batch))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient_x, gradient_y = ctx.saved_tensors
        return gradient * gradient_x, gradient * gradient_y, None, None, None, None, None


def _split(vectors: Tensor, padding: Tensor, heads: int) -> Tensor:
    """(B, S, H), all heads side by side, to relation heads (A * B, S, H / A), zero at padding (it may be NaN)."""
    clean = vectors.masked_fill(padding[:, :, None], 0)
    return clean.unflatten(2, (heads, -1)).permute(2, 0, 1, 3).flatten(0, 1)


def _join(split: Tensor, batch: int) -> Tensor:
    """The inverse of :func:`_split`."""
    return split.unflatten(0, (-1, batch)).permute(1, 2, 0, 3).flatten(2)


def _log_relation(x: Tensor, y: Tensor, masked: Tensor) -> Tensor:
    # A finite fill: rows of nothing but -inf would be NaN, and so would be the gradient of all others.
    return torch.bmm(x, y.mT).masked_fill_(masked, torch.finfo(x.dtype).min).log_softmax(2)


def _check(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    mask: Tensor,
    relations: Sequence[tuple[Vector, Vector]],
    heads: int,
    reduction: str,
    chunk: int | None,
) -> None:
    check_choice(("sample", "token"), reduction=reduction)
    check_whole_or_none(chunk=chunk)
    check_relations(relations)
    for name, vectors in (("student", student), ("teacher", teacher)):
        for vector in sorted({vector for pair in relations for vector in pair}):
            if vector not in vectors:
                raise ValueError(f"The {name} gives no {vector!r}, only {', '.join(vectors)}.")
            shape = tuple(vectors[vector].shape)
            if len(shape) != 3 or shape[:2] != tuple(mask.shape):
                raise ValueError(
                    f"{vector!r} of the {name} has shape {shape}, but must be (B, S, H) with the mask's "
                    f"(B, S) = {tuple(mask.shape)}: both networks have to read the same tokens."
                )
            check_heads(name, shape[2], heads)


def check_relations(relations: Sequence[tuple[str, str]]) -> None:
    """Raise a ValueError unless there are relations, all of them pairs of q, k and v."""
    if not relations or any(len(pair) != 2 or not set(pair) <= {"q", "k", "v"} for pair in relations):
        raise ValueError(f'relations={list(relations)} must be pairs of "q", "k" and "v", at least one.')


def check_heads(name: str, width: int, heads: int) -> None:
    """Raise a ValueError where heads do not divide a network's width."""
    check_whole(heads=heads)
    if width % heads:
        raise ValueError(
            f"heads={heads} does not divide the {name}'s width {width}: take a number that divides the width of both "
            "networks, such as 12 or 48 for 384 and 768."
        )
