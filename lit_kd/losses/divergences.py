r"""Divergences between the next-token distributions of teacher and student.

p = softmax(z_t / T) is the teacher's distribution and q = softmax(z_s / T) the student's; a divergence is a sum over
the vocabulary, in nats. There is no factor T^2: it is the caller's. All functions take

- ``student_logits`` and ``teacher_logits``, (..., V), aligned: both predict the same token;
- ``mask``, of the leading shape, True for tokens that count; None: all do. Masked logits may be anything;
- ``temperature`` T > 0;
- ``reduction``: "token", the mean over the counted tokens; "sequence", for logits (B, S, V): the mean over the
  sequences, if they have a counted token, of their means; "sum" over the counted tokens; "none", the leading shape, 0
  where masked. If nothing is counted the result is 0 and has a graph.

They raise a ValueError, a sentence, for shapes, settings and names that are wrong.

The arithmetic is in log space and at least in float32. A token that is -inf in both networks is as if absent; one that
only one of them forbids makes some divergences infinite: log 0 counts as -10,000 then, and a warning says so. The
gradient reaches the student only, and once (no second derivative): it is taken together with the value, in closed form,
so that one tensor of the size of the logits is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_kd.checks import check_choice, check_share
from lit_kd.losses.tokens import (
    TokenReduction,
    check_pair,
    check_tokens,
    counted,
    log_probs,
    reduce_tokens,
    warn_of_infinity,
)

AdaptiveVariant = Literal["official", "dskd"]

# Of log p and log q, (N, V): the divergence D, (N,), and dD / d log q, (N, V). log p may be overwritten.
_Terms = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: TokenReduction = "token",
) -> Tensor:
    r"""Forward KL, :math:`KL(p \| q) = \sum_v p_v (\log p_v - \log q_v)` (Hinton et al., arXiv:1503.02531).

    Arguments, reductions and errors: see :mod:`lit_kd.losses.divergences`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> forward_kl(student, teacher)
        tensor(0.0725)
    """
    return _divergence(_forward, student_logits, teacher_logits, mask, temperature, reduction)


def reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: TokenReduction = "token",
) -> Tensor:
    r"""Reverse KL, :math:`KL(q \| p)` (MiniLLM, Gu et al., arXiv:2306.08543; here of single tokens).

    Arguments, reductions and errors: see :mod:`lit_kd.losses.divergences`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> reverse_kl(student, teacher)
        tensor(0.0923)
    """
    return _divergence(_reverse, student_logits, teacher_logits, mask, temperature, reduction)


def symmetric_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: TokenReduction = "token",
    reverse_weight: float = 0.5,
) -> Tensor:
    r"""Both directions, :math:`(1 - w) KL(p \| q) + w KL(q \| p)`.

    Arguments, reductions and errors: see :mod:`lit_kd.losses.divergences`; ``reverse_weight`` w is in [0, 1].

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> symmetric_kl(student, teacher)
        tensor(0.0824)
    """
    check_share(reverse_weight=reverse_weight)
    terms = partial(_both, weigh=lambda p, q: (1 - reverse_weight, reverse_weight))
    return _divergence(terms, student_logits, teacher_logits, mask, temperature, reduction)


def generalized_jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: TokenReduction = "token",
    beta: float = 0.5,
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence (GKD, Agarwal et al., arXiv:2306.13649).

    .. math:: \beta \, KL(p \| m) + (1 - \beta) \, KL(q \| m), \quad m = \beta p + (1 - \beta) q

    That vanishes as beta goes to 0 or 1, where ``beta=0`` is defined as :func:`forward_kl` and ``beta=1`` as
    :func:`reverse_kl`: the value jumps there. (Divided by beta the limit at 0 is the forward KL.)

    Arguments, reductions and errors: see :mod:`lit_kd.losses.divergences`; ``beta`` is in [0, 1].

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> generalized_jsd(student, teacher)
        tensor(0.0200)
    """
    check_share(beta=beta)
    ends: dict[float, _Terms] = {0: _forward, 1: _reverse}
    terms = ends.get(beta) or partial(_jensen_shannon, beta=beta)
    return _divergence(terms, student_logits, teacher_logits, mask, temperature, reduction)


def skew_forward_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: TokenReduction = "token",
    alpha: float = 0.1,
) -> Tensor:
    r"""Skew forward KL, :math:`KL(p \| \alpha p + (1 - \alpha) q)` (DistiLLM, Ko et al., arXiv:2402.03898).

    It is the divergence itself, where published code leaves out the teacher's entropy.

    Arguments, reductions and errors: see :mod:`lit_kd.losses.divergences`; ``alpha`` is in [0, 1), as 1 would always
    give 0.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> skew_forward_kl(student, teacher)
        tensor(0.0608)
    """
    check_share("[0, 1)", alpha=alpha)
    terms = partial(_skew_forward, alpha=alpha)
    return _divergence(terms, student_logits, teacher_logits, mask, temperature, reduction)


def skew_reverse_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: TokenReduction = "token",
    alpha: float = 0.1,
) -> Tensor:
    r"""Skew reverse KL, :math:`KL(q \| (1 - \alpha) p + \alpha q)` (DistiLLM, Ko et al., arXiv:2402.03898).

    Arguments, reductions and errors: see :mod:`lit_kd.losses.divergences`; ``alpha`` is in [0, 1), as 1 would always
    give 0.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> skew_reverse_kl(student, teacher)
        tensor(0.0700)
    """
    check_share("[0, 1)", alpha=alpha)
    terms = partial(_skew_reverse, alpha=alpha)
    return _divergence(terms, student_logits, teacher_logits, mask, temperature, reduction)


def total_variation(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: TokenReduction = "token",
) -> Tensor:
    r"""Total variation distance, :math:`\frac{1}{2} \sum_v |p_v - q_v|`, in [0, 1] (f-DISTILL, arXiv:2307.15190).

    Arguments, reductions and errors: see :mod:`lit_kd.losses.divergences`.

    Example:
        >>> student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> total_variation(student, teacher)
        tensor(0.1500)
    """
    return _divergence(_total_variation, student_logits, teacher_logits, mask, temperature, reduction)


def adaptive_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    reduction: TokenReduction = "token",
    mu: float = 0.5,
    variant: AdaptiveVariant = "official",
) -> Tensor:
    r"""Adaptive KL (Wu et al., arXiv:2404.02657): forward KL for the teacher's head, reverse KL for its tail.

    .. math:: \frac{g_h}{g_h + g_t} KL(p \| q) + \frac{g_t}{g_h + g_t} KL(q \| p), \quad g = \sum_v |p_v - q_v|

    over the head and over the tail; no gradient through the weights, which are one half each where p = q. The head of
    the ``variant`` "official" is what has a cumulative p of at most mu in descending order, and always the first token;
    the tail of "dskd" (Zhang et al., arXiv:2406.17328) is what has one of at most mu in ascending order: the token that
    crosses mu is tail there and head here.

    Arguments, reductions and errors: see :mod:`lit_kd.losses.divergences`; ``mu`` is in [0, 1].

    Example:
        >>> student, teacher = torch.zeros(1, 4), torch.tensor([[0.35, 0.30, 0.20, 0.15]]).log()
        >>> adaptive_kl(student, teacher), adaptive_kl(student, teacher, variant="dskd")
        (tensor(0.0529), tensor(0.0525))
    """
    check_share(mu=mu)
    check_choice(("official", "dskd"), variant=variant)
    terms = partial(_both, weigh=partial(_head_and_tail, mu=mu, variant=variant))
    return _divergence(terms, student_logits, teacher_logits, mask, temperature, reduction)


def _forward(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    warn_of_infinity(p, log_q)
    return log_p.sub_(log_q).mul_(p).sum(1), p.neg_()


def _reverse(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    warn_of_infinity(q, log_p)
    terms = torch.sub(log_q, log_p, out=log_p).mul_(q)
    return terms.sum(1), terms  # and q, which shifts all logits alike


def _both(log_p: Tensor, log_q: Tensor, weigh: Callable[[Tensor, Tensor], tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    warn_of_infinity(p, log_q)
    warn_of_infinity(q, log_p)
    forward_weight, reverse_weight = weigh(p, q)  # numbers, or (N, 1)
    ratio = log_p - log_q
    forward, reverse = (p * ratio).sum(1, keepdim=True), -(q * ratio).sum(1, keepdim=True)
    value = forward_weight * forward + reverse_weight * reverse
    return value.squeeze(1), -(forward_weight * p + reverse_weight * q * ratio)


def _jensen_shannon(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    log_m = _log_mixture(log_p, log_q, beta)
    p, slope = log_p.exp(), (1 - beta) * log_q.exp() * (log_q - log_m)
    return beta * (p * (log_p - log_m)).sum(1) + slope.sum(1), slope


def _skew_forward(log_p: Tensor, log_q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    log_m = _log_mixture(log_p, log_q, alpha)
    p, share = log_p.exp(), (log_q - log_m + math.log(1 - alpha)).exp()  # of q in m
    warn_of_infinity(p, log_m)  # alpha = 0
    return (p * (log_p - log_m)).sum(1), -p * share


def _skew_reverse(log_p: Tensor, log_q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    log_m = _log_mixture(log_p, log_q, 1 - alpha)
    q, share = log_q.exp(), (log_q - log_m + _log(alpha)).exp()
    warn_of_infinity(q, log_m)
    terms = q * (log_q - log_m)
    return terms.sum(1), terms - q * share


def _total_variation(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    gap = q - log_p.exp()
    return gap.abs().sum(1) / 2, q * gap.sign() / 2


def _head_and_tail(p: Tensor, q: Tensor, mu: float, variant: AdaptiveVariant) -> tuple[Tensor, Tensor]:
    """Weights (N, 1) of head and tail, by the gap between p and q on them."""
    ordered, order = p.sort(1, descending=variant == "official")
    within = ordered.cumsum(1) <= mu
    if variant == "official":
        within[:, 0] = True
    gap = (p - q).abs().gather(1, order)
    inner, outer = (gap * within).sum(1, keepdim=True), (gap * ~within).sum(1, keepdim=True)
    share = torch.where(inner + outer > 0, inner / (inner + outer), 0.5)
    return (share, 1 - share) if variant == "official" else (1 - share, share)


def _log(share: float) -> float:
    return math.log(share) if share else -math.inf


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share * p + (1 - share) * q)."""
    return torch.logaddexp(log_p + _log(share), log_q + _log(1 - share))


def _divergence(
    terms: _Terms,
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None,
    temperature: float,
    reduction: TokenReduction,
) -> Tensor:
    check_pair(student_logits, teacher_logits)
    check_tokens(student_logits, mask, temperature, reduction)
    student, teacher = counted(student_logits, mask), counted(teacher_logits.detach(), mask)
    with torch.autocast(student.device.type, enabled=False):
        per_token = _Divergence.apply(student, teacher, temperature, terms)
    return reduce_tokens(per_token, student_logits.shape[:-1], mask, reduction)


class _Divergence(torch.autograd.Function):
    """A divergence of each row and, with it, its gradient."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, terms: _Terms) -> Tensor:
        log_q = log_probs(student, temperature)
        value, slope = terms(log_probs(teacher, temperature).to(log_q.dtype), log_q)
        if ctx.needs_input_grad[0]:
            total = slope.sum(1, keepdim=True)
            ctx.save_for_backward(slope.sub_(log_q.exp_().mul_(total)).div_(temperature))  # through the log-softmax
            ctx.dtype = student.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (gradient[:, None] * slope).to(ctx.dtype), None, None, None
