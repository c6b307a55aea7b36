r"""The arithmetic of DAC-KL: a forward KL over the classes between two quantiles, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_kd.checks import check_choice, check_positive, check_share, check_whole
from lit_kd.losses.tokens import check_pair, log_probs, warn_of_infinity

ClipNorm = Literal["rest", "renorm", "none"]
ClipMask = Literal["soft", "hard", "straight_through"]

_SPAN = 1e-12  # between the quantiles at least, where they are equal
_IN_CACHE = 2**19  # values of a row of logits times rows


class DACTerms(NamedTuple):
    """What :func:`dac_kl` gives, of N tokens; only ``loss`` has a gradient.

    Attributes:
        loss: nats, (N,).
        kept_classes: sum of the mask over the vocabulary, those put back counted as 1, (N,).
        kept_mass: teacher's probability of what is kept, before it is renormalised, (N,).
        lower: level of the lower quantile, (N,).
        upper: level of the upper quantile, (N,).
    """

    loss: Tensor
    kept_classes: Tensor
    kept_mass: Tensor
    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class Clip:
    r"""What :func:`lit_kd.losses.dac_kl` keeps, and what it makes of the rest.

    Attributes:
        mask: "soft", two sigmoids; "hard", 1 for :math:`Q(l) \le p_v \le Q(u)` and else 0, without a gradient to the
            levels; "straight_through", the value of the hard one and the gradient of the soft one.
        norm: "rest", what is not kept is one more class of both: a lower bound of the forward KL that still tells how
            much the student gives to it; "renorm", P and R divided by their sums, which is blind to that; "none", P and
            R as they are, which can be negative. All are the forward KL over the full range.
        sharpness: tau of the sigmoids.
        min_keep: most probable classes that are always kept; 1 is the peak alone, and then a sub-network can drive the
            loss to 0 with nothing learnt.
        coverage: the kept mass below which ``coverage_weight`` times the shortfall is added to the loss.
        coverage_weight: weight of that; 0: none.
        detach_mask_in_student: no gradient to the levels by the mask in R.

    Raises:
        ValueError: a setting that is none of these.
    """

    mask: ClipMask = "soft"
    norm: ClipNorm = "rest"
    sharpness: float = 10.0
    min_keep: int = 2
    coverage: float = 0.0
    coverage_weight: float = 0.0
    detach_mask_in_student: bool = False

    def __post_init__(self) -> None:
        """Check them."""
        check_choice(("soft", "hard", "straight_through"), mask=self.mask)
        check_choice(("renorm", "rest", "none"), norm=self.norm)
        check_positive(sharpness=self.sharpness)
        check_whole(min_keep=self.min_keep)
        check_share(coverage=self.coverage)


def interpolated_quantiles(values: Tensor, levels: Tensor) -> Tensor:
    r"""Quantiles of rows at levels of their own, as ``torch.quantile`` interpolates them.

    .. math:: Q(t) = (1 - w) s_k + w s_{k+1}, \quad k = \lfloor t (V - 1) \rfloor, \quad w = t (V - 1) - k

    of the row in ascending order s. The gradient reaches the levels only, through w. (``torch.quantile`` has no levels
    for each row, and refuses more than 16 million values.)

    Args:
        values: (N, V).
        levels: (N, L), in [0, 1].

    Returns:
        (N, L).

    Example:
        >>> p = torch.tensor([[0.55, 0.20, 0.10, 0.08, 0.05, 0.02]])
        >>> interpolated_quantiles(p, torch.tensor([[0.2, 0.5, 0.8]]))
        tensor([[0.0500, 0.0900, 0.2000]])
    """
    return _quantiles(ascending_rows(values.detach()), levels)


def check_rows(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    """Raise a ValueError unless both are rows of as many classes, two at least, and the temperature is positive."""
    check_pair(student_logits, teacher_logits)
    if student_logits.ndim != 2 or student_logits.shape[1] < 2:
        raise ValueError(f"logits must be rows (N, V) of at least 2 classes, got {tuple(student_logits.shape)}")
    check_positive(temperature=temperature)


def in_blocks(terms: Callable[..., DACTerms], *rows: Tensor) -> DACTerms:
    """Terms of rows; on a CPU of few at a time, whose tensors stay in the cache."""
    count, classes = rows[0].shape
    size = max(_IN_CACHE // classes if rows[0].device.type == "cpu" else count, 1)
    parts = [terms(*block) for block in zip(*(values.split(size) for values in rows), strict=True)]
    return parts[0] if len(parts) == 1 else DACTerms(*map(torch.cat, zip(*parts, strict=True)))


def teacher_probs(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Its p and log p, (N, V), in the precision that the student's logits are computed in."""
    precision = torch.promote_types(student_logits.dtype, torch.float32)
    log_p = log_probs(teacher_logits.detach(), temperature).to(precision)
    return log_p.exp(), log_p


def ascending_rows(values: Tensor) -> Tensor:
    """Rows in ascending order. On a CPU numpy is 20 times as fast as torch, which finds the order as well."""
    if values.device.type != "cpu" or not values.numel():
        return values.sort(1).values
    import numpy as np

    return torch.from_numpy(np.sort(values.numpy(), axis=1))


def _quantiles(ascending: Tensor, levels: Tensor) -> Tensor:
    last = ascending.shape[1] - 1
    place = levels * last
    below = place.detach().long().clamp(0, last - 1)  # also where NaN came in
    low, high = ascending.gather(1, below), ascending.gather(1, below + 1)
    return low + (place - below) * (high - low)


def clipped_kl(
    student_logits: Tensor,
    p: Tensor,
    log_p: Tensor,
    ascending: Tensor,
    lower: Tensor,
    upper: Tensor,
    temperature: float,
    clip: Clip,
) -> DACTerms:
    """Terms of rows, (N, V), of which p, log p and p in ascending order are given; levels are (N,)."""
    low, high = _quantiles(ascending, torch.stack([lower, upper], 1)).unbind(1)
    least = ascending[:, -min(clip.min_keep, p.shape[1])]  # of the classes that are always kept
    loss, kept, mass = _ClippedKL.apply(student_logits, low, high, p, log_p, least, temperature, clip)
    return DACTerms(loss, kept, mass, lower.detach(), upper.detach())


class _ClippedKL(torch.autograd.Function):
    """Loss, kept classes and kept mass of each row, and with them the gradients, in closed form.

    The loss is a function of :math:`D = sum m p log(p / q)`, :math:`A = sum m p` and :math:`B = sum m q`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        low: Tensor,
        high: Tensor,
        p: Tensor,
        log_p: Tensor,
        least: Tensor,
        temperature: float,
        clip: Clip,
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_q = log_probs(student, temperature)
        q = log_q.exp()
        low, high, least = low[:, None], high[:, None], least[:, None]
        span = high - low + _SPAN
        steep, width = clip.sharpness / span, clip.sharpness * (high - low) / span
        always = p >= least
        x = (p - low).mul_(steep)
        enter, leave = x.sigmoid(), (width - x).sigmoid_()
        keep = enter * leave if clip.mask == "soft" else ((p >= low) & (p <= high)).to(p.dtype)
        keep.masked_fill_(always, 1)
        kept, kept_p, kept_q = keep.sum(1), keep * p, keep * q
        warn_of_infinity(kept_p, log_q)
        ratio = torch.sub(log_p, log_q, out=log_q)
        d, mass, mass_q = torch.linalg.vecdot(kept_p, ratio), kept_p.sum(1), kept_q.sum(1)
        rest, rest_q = mass, mass_q
        if clip.norm == "rest":
            dropped = 1 - keep
            rest, rest_q = torch.linalg.vecdot(dropped, p), torch.linalg.vecdot(dropped, q)
        loss, of_d, of_mass, of_mass_q = _combined(clip.norm, d, mass, mass_q, rest, rest_q)
        short = (clip.coverage - mass).clamp(min=0)
        loss, of_mass = loss + clip.coverage_weight * short, of_mass - clip.coverage_weight * (short > 0)
        of_d, of_mass, of_mass_q = of_d[:, None], of_mass[:, None], of_mass_q[:, None]
        of_low = of_high = torch.zeros_like(mass)
        if clip.mask != "hard" and any(ctx.needs_input_grad[1:3]):
            other, of_other = (p, of_d) if clip.detach_mask_in_student else (q, of_mass_q)
            soft = ratio.mul_(of_d).add_(of_mass).mul_(p).addcmul_(other, of_other)
            soft.mul_(enter).mul_(leave).masked_fill_(always, 0)
            near = torch.addcmul(soft, soft, enter, value=-1, out=enter)  # by the argument of the first sigmoid
            far = torch.addcmul(soft, soft, leave, value=-1, out=leave)  # and of the second
            of_near, of_far, of_x = near.sum(1), far.sum(1), torch.linalg.vecdot(near.sub_(far), x)
            inverse, width = (1 / span)[:, 0], width[:, 0]
            of_low = inverse * (of_x + width * of_far - clip.sharpness * of_near)
            of_high = inverse * ((clip.sharpness - width) * of_far - of_x)
        slope = kept_q.mul_(of_mass_q).addcmul_(kept_p, of_d, value=-1)
        slope.addcmul_(q, slope.sum(1, keepdim=True), value=-1).div_(temperature)
        ctx.save_for_backward(slope, of_low, of_high)
        ctx.dtype = student.dtype
        ctx.mark_non_differentiable(kept, mass)
        return loss, kept, mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        slope, of_low, of_high = ctx.saved_tensors
        to_student = (gradient[:, None] * slope).to(ctx.dtype)
        return to_student, gradient * of_low, gradient * of_high, None, None, None, None, None


def _combined(
    norm: ClipNorm, d: Tensor, mass: Tensor, mass_q: Tensor, rest: Tensor, rest_q: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, (N,), and its derivatives in D, A and B."""
    if norm == "renorm":
        mass_q = mass_q.clamp(min=torch.finfo(mass_q.dtype).tiny)
        loss = d / mass - mass.log() + mass_q.log()
        return loss, 1 / mass, -d / mass**2 - 1 / mass, 1 / mass_q
    if norm == "none":
        return d, torch.ones_like(d), torch.zeros_like(d), torch.zeros_like(d)
    tiny = torch.finfo(rest.dtype).tiny
    log_ratio = rest.clamp(min=tiny).log() - rest_q.clamp(min=tiny).log()
    return d + rest * log_ratio, torch.ones_like(d), -log_ratio - 1, log_ratio.exp()
