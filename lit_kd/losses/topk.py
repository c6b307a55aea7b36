"""Forward KL from the k most probable tokens of the teacher, which can be stored where all V can't."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lit_kd.checks import check_choice
from lit_kd.losses.shared import full_precision
from lit_kd.losses.tokens import LOG_ZERO, TokenReduction, check_tokens, counted, reduce_tokens, warn_of_infinity

Tail = Literal["bucket", "renormalize_both", "renormalize_teacher", "none"]


def topk_kl(
    student_logits: Tensor,
    teacher_indices: Tensor,
    teacher_logprobs: Tensor,
    tail: Tail = "bucket",
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: TokenReduction = "token",
) -> Tensor:
    r"""KL(p || q) of the teacher's k most probable tokens, in nats, without T^2.

    What becomes of the other V - k tokens, of mass :math:`p_r = 1 - \sum_k p_k` and :math:`q_r` likewise:

    - "bucket": they are one more token, :math:`\sum_k p_k \log(p_k / q_k) + p_r \log(p_r / q_r)`. A lower bound of the
      full KL that grows with k, is 0 for equal logits and sees the student's tail;
    - "renormalize_both": p and q among the k alone; blind to the student's tail;
    - "renormalize_teacher": p among the k alone, q as it is (DistillKit's "zero"); for equal logits it is
      :math:`-\log \sum_k p_k` and drives the student to drop its tail;
    - "none": the bare sum over the k; it can be negative.

    Args:
        student_logits: (..., V).
        teacher_indices: (..., k) integers below V, none twice in a token.
        teacher_logprobs: (..., k), of the softmax over the whole vocabulary at this temperature.
        tail: as above.
        mask: of the leading shape, True for tokens that count; None: all do. What is masked may be anything.
        temperature: T > 0, which divides the student's logits only.
        reduction: as in :mod:`lit_kd.losses.divergences`.

    Raises:
        ValueError: shapes that do not fit, an index that the student does not have, an unknown tail or reduction, or a
            temperature that isn't positive.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> topk_kl(student, torch.tensor([[0, 1]]), teacher[:, :2])
        tensor(0.0725)
        >>> topk_kl(student, torch.tensor([[0, 1]]), teacher[:, :2], tail="renormalize_teacher")
        tensor(0.2877)
    """
    check_choice(get_args(Tail), tail=tail)
    shape, vocabulary = student_logits.shape[:-1], student_logits.shape[-1]
    if teacher_indices.shape != teacher_logprobs.shape or teacher_indices.shape[:-1] != shape:
        raise ValueError(
            f"teacher_indices and teacher_logprobs must be (..., k) for student_logits {tuple(student_logits.shape)}, "
            f"got {tuple(teacher_indices.shape)} and {tuple(teacher_logprobs.shape)}"
        )
    check_tokens(student_logits, mask, temperature, reduction)
    logits, indices, log_p = (counted(x, mask) for x in (student_logits, teacher_indices, teacher_logprobs.detach()))
    if indices.numel() and not 0 <= indices.min() <= indices.max() < vocabulary:
        raise ValueError(
            f"teacher_indices go from {indices.min()} to {indices.max()}, but the student has {vocabulary} tokens: the "
            "teacher's top k must be of the vocabulary that both share"
        )
    per_token = _topk_kl(logits, indices.long(), log_p, tail, temperature)
    return reduce_tokens(per_token, shape, mask, reduction)


@full_precision
def _topk_kl(logits: Tensor, indices: Tensor, log_p: Tensor, tail: Tail, temperature: float) -> Tensor:
    """The terms of rows of logits (N, V), (N,)."""
    k = indices.shape[1]
    smallest = torch.finfo(logits.dtype).min  # for -inf, of which alone the gradient of logsumexp is NaN
    scaled = logits if temperature == 1 else logits / temperature
    top = scaled.gather(1, indices).clamp(min=smallest)
    log_p = log_p.to(top.dtype).clamp(min=LOG_ZERO)
    if tail == "renormalize_both":
        return _kl(log_p.log_softmax(1), top.log_softmax(1))

    rest = scaled.scatter(1, indices, smallest).logsumexp(1)  # 1 - sum q would cancel where the tail is light
    log_z = torch.logaddexp(rest, top.logsumexp(1))
    log_q = top - log_z[:, None]
    if tail == "renormalize_teacher":
        return _kl(log_p.log_softmax(1), log_q)
    if tail == "none" or k == logits.shape[1]:
        return _kl(log_p, log_q)
    left = 1 - log_p.exp().sum(1, keepdim=True)
    left = left.where(left > k * torch.finfo(left.dtype).eps, 0)  # what is rounding is no mass
    return _kl(torch.cat([log_p, left.log()], 1).clamp(min=LOG_ZERO), torch.cat([log_q, (rest - log_z)[:, None]], 1))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    p, log_q = log_p.exp(), log_q.clamp(min=LOG_ZERO)
    warn_of_infinity(p, log_q)
    return (p * (log_p - log_q)).sum(1)
