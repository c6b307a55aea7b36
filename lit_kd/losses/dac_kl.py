r"""Distribution adaptive clipping KL (DAC-KL of MGSR, Liu et al., arXiv:2407.10068).

Published: a small network reads the teacher's distribution p of a token and gives two quantile levels; a sigmoid mask
keeps the dense classes between the two quantiles; the most probable class, which the upper quantile cuts off, is put
back; the loss is a forward KL over what is kept, of which both networks learn.

The rest is our reconstruction, and an argument each: what the sub-network reads and how wide it is, where it starts,
the shape of the mask, whether what is kept is renormalised, and the guards. They are needed: the sub-network is trained
to lower the loss, so it is paid to drop the classes on which the networks disagree, down to the peak alone, where
nothing is left to learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lit_kd.losses.tokens import check_pair, log_probs, warn_of_infinity

ClipNorm = Literal["rest", "renorm", "none"]
ClipMask = Literal["soft", "hard", "straight_through"]
ClipFeatures = Literal["topk", "full_probs", "student_teacher_probs", "stats"]

_SPAN = 1e-12  # between the quantiles at least, where they are equal
_IN_CACHE = 2**19  # values of a row of logits times rows
_LEAST_LOG = -30.0  # what a sub-network reads of a probability of 0


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
class _Clip:
    mask: ClipMask = "soft"
    norm: ClipNorm = "rest"
    sharpness: float = 10.0
    min_keep: int = 2
    coverage: float = 0.0
    coverage_weight: float = 0.0
    detach_mask_in_student: bool = False

    def __post_init__(self) -> None:
        if self.mask not in ("soft", "hard", "straight_through"):
            raise ValueError(f'mask must be "soft", "hard" or "straight_through", got {self.mask!r}')
        if self.norm not in ("renorm", "rest", "none"):
            raise ValueError(f'norm must be "renorm", "rest" or "none", got {self.norm!r}')
        if not self.sharpness > 0:
            raise ValueError(f"sharpness must be positive, got {self.sharpness}")
        if self.min_keep < 1:
            raise ValueError(f"min_keep must be at least 1, the peak, got {self.min_keep}")
        if not 0 <= self.coverage <= 1:
            raise ValueError(f"coverage must be in [0, 1], got {self.coverage}")


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
    return _quantiles(_ascending(values.detach()), levels)


def dac_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    lower: Tensor,
    upper: Tensor,
    temperature: float = 1.0,
    *,
    mask: ClipMask = "soft",
    norm: ClipNorm = "rest",
    sharpness: float = 10.0,
    min_keep: int = 2,
    coverage: float = 0.0,
    coverage_weight: float = 0.0,
    detach_mask_in_student: bool = False,
) -> DACTerms:
    r"""Forward KL over the classes between two quantiles of the teacher's probabilities and its most probable ones.

    With :math:`p` and :math:`q` of teacher and student at the temperature, and :math:`Q` the interpolated quantile,

    .. math:: m_v = \sigma(\tau \frac{p_v - Q(l)}{Q(u) - Q(l)}) \, \sigma(\tau \frac{Q(u) - p_v}{Q(u) - Q(l)}), \quad
        P_v = m_v p_v, \quad R_v = m_v q_v, \quad loss = \sum_v P_v \log \frac{P_v}{R_v}

    where :math:`m_v = 1` for the ``min_keep`` most probable classes, the peak among them (classes as probable as the
    last of these are kept with it). Exact form of the mask, norms, guards: ours, see the module. The gradient reaches
    the student's logits and, with a soft mask, the levels; never the teacher.

    Args:
        student_logits: (N, V), of the tokens that count.
        teacher_logits: (N, V).
        lower: level l of each token, (N,), in [0, 1].
        upper: level u of each token, (N,), in [l, 1].
        temperature: T > 0. There is no factor T^2: it is the caller's.
        mask: "soft" as above; "hard", 1 for :math:`Q(l) \le p_v \le Q(u)` and else 0, without a gradient to the levels;
            "straight_through", the value of the hard one and the gradient of the soft one.
        norm: "rest", what is not kept is one more class of both: a lower bound of the forward KL that still tells how
            much the student gives to it; "renorm", P and R divided by their sums, which is blind to that; "none", as it
            stands above, which can be negative. All are the forward KL over the full range.
        sharpness: tau.
        min_keep: classes that are always kept; 1 is the peak alone.
        coverage: the kept mass below which ``coverage_weight`` times the shortfall is added to the loss.
        coverage_weight: weight of that; 0: none.
        detach_mask_in_student: no gradient to the levels by the mask in R.

    Raises:
        ValueError: shapes that do not fit, levels out of order, or a setting that is none of these.

    Example:
        >>> teacher = torch.tensor([[0.55, 0.20, 0.10, 0.08, 0.05, 0.02]]).log()
        >>> student = torch.tensor([[0.30, 0.25, 0.20, 0.10, 0.10, 0.05]]).log()
        >>> dac_kl(student, teacher, torch.tensor([0.2]), torch.tensor([0.8]), mask="hard").loss
        tensor([0.1486])
    """
    clip = _Clip(mask, norm, sharpness, min_keep, coverage, coverage_weight, detach_mask_in_student)
    _check_rows(student_logits, teacher_logits, temperature)
    if lower.shape != student_logits.shape[:1] or upper.shape != lower.shape:
        raise ValueError(
            f"lower and upper must have one level a token, ({len(student_logits)},), "
            f"got {tuple(lower.shape)} and {tuple(upper.shape)}"
        )
    if not ((lower >= 0) & (lower <= upper) & (upper <= 1)).all():
        raise ValueError("lower and upper must be levels with 0 <= lower <= upper <= 1")

    def rows(student: Tensor, teacher: Tensor, lower: Tensor, upper: Tensor) -> DACTerms:
        with torch.autocast(student.device.type, enabled=False):
            p, log_p = _teacher(student, teacher, temperature)
            return _clipped_kl(student, p, log_p, _ascending(p), lower, upper, temperature, clip)

    return _in_blocks(rows, student_logits, teacher_logits, lower, upper)


class DACKL(nn.Module):
    r""":func:`dac_kl` with the sub-network that gives the levels.

    Linear, GELU, Linear, from ``features`` of the token to a and b, and :math:`l = l_{max} \sigma(a)`,
    :math:`u = c + (1 - c) \sigma(b)` with :math:`c = \max(l, u_{min})`: so 0 < l < u < 1. Its last layer starts with
    weights of 0, all tokens at the levels of ``start``. It learns by the loss, as the student does, and needs a place
    in the optimizer. Only ``features="student_teacher_probs"`` looks at the student, without a gradient to it.

    All of it is our reconstruction; published is that there is such a network.

    Example:
        >>> dac = DACKL()
        >>> terms = dac(torch.randn(5, 300, requires_grad=True), torch.randn(5, 300))
        >>> terms.loss.shape, terms.lower[0], terms.upper[0]
        (torch.Size([5]), tensor(0.0100), tensor(0.9900))
    """

    def __init__(
        self,
        features: ClipFeatures = "topk",
        hidden: int = 64,
        norm: ClipNorm = "rest",
        mask: ClipMask = "soft",
        min_keep: int = 2,
        sharpness: float = 10.0,
        top: int = 256,
        vocabulary: int | None = None,
        start: tuple[float, float] = (0.01, 0.99),
        limits: tuple[float, float] = (0.5, 0.5),
        coverage: float = 0.0,
        coverage_weight: float = 0.0,
        detach_mask_in_student: bool = False,
        objective: Literal["min", "max"] = "min",
    ) -> None:
        """Build the sub-network.

        Args:
            features: "topk": the ``top`` largest log-probabilities of the teacher, in order, and its entropy;
                "full_probs": its probabilities; "student_teacher_probs": those of both; "stats": its entropy, largest
                two probabilities, and mass of the largest 10 and 100.
            hidden: width of the sub-network.
            norm: see :func:`dac_kl`.
            mask: see :func:`dac_kl`; "hard" leaves the levels at ``start``.
            min_keep: see :func:`dac_kl`; of less than 2 the loss can be driven to 0 with nothing learnt.
            sharpness: see :func:`dac_kl`.
            top: log-probabilities that "topk" reads; of a smaller vocabulary the others count as probability 0.
            vocabulary: number of classes, which "full_probs" and "student_teacher_probs" need.
            start: levels before training.
            limits: the largest lower level and the smallest upper one; (1, 0): none.
            coverage: see :func:`dac_kl`.
            coverage_weight: see :func:`dac_kl`.
            detach_mask_in_student: see :func:`dac_kl`.
            objective: of the sub-network: "min", that of the student; "max", against it (then ``coverage_weight`` times
                the shortfall is taken off).

        Raises:
            ValueError: a setting that is none of these, or that ``features`` need and is missing.
        """
        super().__init__()
        weight = coverage_weight if objective == "min" else -coverage_weight
        self.clip = _Clip(mask, norm, sharpness, min_keep, coverage, weight, detach_mask_in_student)
        if objective not in ("min", "max"):
            raise ValueError(f'objective must be "min" or "max", got {objective!r}')
        if features not in ("topk", "full_probs", "student_teacher_probs", "stats"):
            raise ValueError(
                f'features must be "topk", "full_probs", "student_teacher_probs" or "stats", got {features!r}'
            )
        if vocabulary is None and features in ("full_probs", "student_teacher_probs"):
            raise ValueError(f"features={features!r} needs vocabulary, the number of classes")
        largest, smallest = limits
        if not (0 < start[0] < largest <= 1 and 0 <= smallest < 1 and max(start[0], smallest) < start[1] < 1):
            raise ValueError(
                f"start={start} must be a lower level below limits[0] and an upper one above it and above limits[1], "
                f"all between 0 and 1, got limits={limits}"
            )
        self.features, self.top, self.vocabulary = features, top, vocabulary
        self.limits, self.objective = limits, objective
        width = {"topk": top + 1, "full_probs": vocabulary, "student_teacher_probs": 2 * (vocabulary or 0), "stats": 5}
        self.subnet = nn.Sequential(nn.Linear(width[features] or 0, hidden), nn.GELU(), nn.Linear(hidden, 2))
        last: Any = self.subnet[2]
        nn.init.zeros_(last.weight)
        base = max(start[0], smallest)
        with torch.no_grad():
            last.bias.copy_(torch.logit(torch.tensor([start[0] / largest, (start[1] - base) / (1 - base)])))

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> DACTerms:
        """Terms of rows of logits (N, V); N may be 0."""
        _check_rows(student_logits, teacher_logits, temperature)
        return _in_blocks(partial(self.rows, temperature=temperature), student_logits, teacher_logits)

    def rows(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> DACTerms:
        """Terms of all rows at once."""
        with torch.autocast(student_logits.device.type, enabled=False):
            p, log_p = _teacher(student_logits, teacher_logits, temperature)
            ascending = _ascending(p)
            lower, upper = self.levels(self.read(student_logits, p, log_p, ascending, temperature))
            if self.objective == "max":
                lower, upper = 2 * lower.detach() - lower, 2 * upper.detach() - upper  # the gradient turned round
            return _clipped_kl(student_logits, p, log_p, ascending, lower, upper, temperature, self.clip)

    def levels(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper level, (N,) each, of features (N, F)."""
        a, b = self.subnet(features.to(next(self.parameters()).dtype)).to(features.dtype).unbind(1)
        largest, smallest = self.limits
        lower = largest * a.sigmoid()
        base = lower.clamp(min=smallest)
        return lower, base + (1 - base) * b.sigmoid()

    @torch.no_grad()
    def read(self, student_logits: Tensor, p: Tensor, log_p: Tensor, ascending: Tensor, temperature: float) -> Tensor:
        """Features (N, F) of the teacher's p, log p and p in order, (N, V) each."""
        if self.vocabulary not in (None, p.shape[1]) and "probs" in self.features:
            raise ValueError(f"vocabulary={self.vocabulary}, but the logits are of {p.shape[1]} classes")
        if self.features == "full_probs":
            return p
        if self.features == "student_teacher_probs":
            return torch.cat([log_probs(student_logits.detach(), temperature).exp(), p], 1)
        entropy = -torch.linalg.vecdot(p, log_p)[:, None]
        if self.features == "stats":
            largest = ascending[:, -100:].flip(1)
            return torch.cat([entropy, largest[:, :2], largest[:, :10].sum(1)[:, None], largest.sum(1)[:, None]], 1)
        found = ascending[:, -self.top :].flip(1).log().clamp_(min=_LEAST_LOG)
        return torch.cat([nn.functional.pad(found, (0, self.top - found.shape[1]), value=_LEAST_LOG), entropy], 1)


def _check_rows(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    check_pair(student_logits, teacher_logits)
    if student_logits.ndim != 2 or student_logits.shape[1] < 2:
        raise ValueError(f"logits must be rows (N, V) of at least 2 classes, got {tuple(student_logits.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def _in_blocks(terms: Callable[..., DACTerms], *rows: Tensor) -> DACTerms:
    """Terms of rows; on a CPU of few at a time, whose tensors stay in the cache."""
    count, classes = rows[0].shape
    size = max(_IN_CACHE // classes if rows[0].device.type == "cpu" else count, 1)
    parts = [terms(*block) for block in zip(*(values.split(size) for values in rows), strict=True)]
    return parts[0] if len(parts) == 1 else DACTerms(*map(torch.cat, zip(*parts, strict=True)))


def _teacher(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Its p and log p, (N, V), in the precision that the student's logits are computed in."""
    precision = torch.promote_types(student_logits.dtype, torch.float32)
    log_p = log_probs(teacher_logits.detach(), temperature).to(precision)
    return log_p.exp(), log_p


def _ascending(values: Tensor) -> Tensor:
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


def _clipped_kl(
    student_logits: Tensor,
    p: Tensor,
    log_p: Tensor,
    ascending: Tensor,
    lower: Tensor,
    upper: Tensor,
    temperature: float,
    clip: _Clip,
) -> DACTerms:
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
        clip: _Clip,
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
