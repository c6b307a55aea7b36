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

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_kd.checks import check_choice, check_whole, check_whole_or_none
from lit_kd.losses.clipping import (
    Clip,
    DACTerms,
    ascending_rows,
    check_rows,
    clipped_kl,
    in_blocks,
    teacher_probs,
)
from lit_kd.losses.tokens import log_probs

ClipFeatures = Literal["topk", "full_probs", "student_teacher_probs", "stats"]

_CLIP = Clip()
_LEAST_LOG = -30.0  # what a sub-network reads of a probability of 0


def dac_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    lower: Tensor,
    upper: Tensor,
    temperature: float = 1.0,
    clip: Clip = _CLIP,
) -> DACTerms:
    r"""Forward KL over the classes between two quantiles of the teacher's probabilities and its most probable ones.

    With :math:`p` and :math:`q` of teacher and student at the temperature, and :math:`Q` the interpolated quantile,

    .. math:: m_v = \sigma(\tau \frac{p_v - Q(l)}{Q(u) - Q(l)}) \, \sigma(\tau \frac{Q(u) - p_v}{Q(u) - Q(l)}), \quad
        P_v = m_v p_v, \quad R_v = m_v q_v, \quad loss = \sum_v P_v \log \frac{P_v}{R_v}

    where :math:`m_v = 1` for the ``clip.min_keep`` most probable classes, the peak among them (classes as probable as
    the last of these are kept with it). Exact form of the mask, norms, guards: ours, see the module. The gradient
    reaches the student's logits and, with a soft mask, the levels; never the teacher.

    Args:
        student_logits: (N, V), of the tokens that count.
        teacher_logits: (N, V).
        lower: level l of each token, (N,), in [0, 1].
        upper: level u of each token, (N,), in [l, 1].
        temperature: T > 0. There is no factor T^2: it is the caller's.
        clip: shape of the mask, what is made of what it drops, and guards.

    Raises:
        ValueError: shapes that do not fit, or levels out of order.

    Example:
        >>> teacher = torch.tensor([[0.55, 0.20, 0.10, 0.08, 0.05, 0.02]]).log()
        >>> student = torch.tensor([[0.30, 0.25, 0.20, 0.10, 0.10, 0.05]]).log()
        >>> dac_kl(student, teacher, torch.tensor([0.2]), torch.tensor([0.8]), clip=Clip(mask="hard")).loss
        tensor([0.1486])
    """
    check_rows(student_logits, teacher_logits, temperature)
    if lower.shape != student_logits.shape[:1] or upper.shape != lower.shape:
        raise ValueError(
            f"lower and upper must have one level a token, ({len(student_logits)},), "
            f"got {tuple(lower.shape)} and {tuple(upper.shape)}"
        )
    if not ((lower >= 0) & (lower <= upper) & (upper <= 1)).all():
        raise ValueError("lower and upper must be levels with 0 <= lower <= upper <= 1")

    def rows(student: Tensor, teacher: Tensor, lower: Tensor, upper: Tensor) -> DACTerms:
        with torch.autocast(student.device.type, enabled=False):
            p, log_p = teacher_probs(student, teacher, temperature)
            return clipped_kl(student, p, log_p, ascending_rows(p), lower, upper, temperature, clip)

    return in_blocks(rows, student_logits, teacher_logits, lower, upper)


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
        top_k: int = 256,
        num_classes: int | None = None,
        start: tuple[float, float] = (0.01, 0.99),
        limits: tuple[float, float] = (0.5, 0.5),
        clip: Clip = _CLIP,
        objective: Literal["min", "max"] = "min",
    ) -> None:
        """Build the sub-network.

        Args:
            features: "topk": the ``top_k`` largest log-probabilities of the teacher, in order, and its entropy;
                "full_probs": its probabilities; "student_teacher_probs": those of both; "stats": its entropy, largest
                two probabilities, and mass of the largest 10 and 100.
            hidden: width of the sub-network.
            top_k: log-probabilities that "topk" reads; of a smaller vocabulary the others count as probability 0.
            num_classes: which "full_probs" and "student_teacher_probs" need.
            start: levels before training.
            limits: the largest lower level and the smallest upper one; (1, 0): none.
            clip: see :func:`dac_kl`; a hard mask leaves the levels at ``start``.
            objective: of the sub-network: "min", that of the student; "max", against it (then ``coverage_weight`` times
                the shortfall is taken off).

        Raises:
            ValueError: a setting that is none of these, or that ``features`` need and is missing.
        """
        super().__init__()
        check_choice(("min", "max"), objective=objective)
        self.clip = clip if objective == "min" else replace(clip, coverage_weight=-clip.coverage_weight)
        check_choice(("topk", "full_probs", "student_teacher_probs", "stats"), features=features)
        check_whole(hidden=hidden, top_k=top_k)
        check_whole_or_none(2, num_classes=num_classes)
        if num_classes is None and features in ("full_probs", "student_teacher_probs"):
            raise ValueError(f"features={features!r} needs num_classes")
        largest, smallest = limits
        if not (0 < start[0] < largest <= 1 and 0 <= smallest < 1 and max(start[0], smallest) < start[1] < 1):
            raise ValueError(
                f"start={start} must be a lower level below limits[0] and an upper one above it and above limits[1], "
                f"all between 0 and 1, got limits={limits}"
            )
        self.features, self.top_k, self.num_classes = features, top_k, num_classes
        self.limits, self.objective = limits, objective
        width = {
            "topk": top_k + 1,
            "full_probs": num_classes,
            "student_teacher_probs": 2 * (num_classes or 0),
            "stats": 5,
        }
        self.subnet = nn.Sequential(nn.Linear(width[features] or 0, hidden), nn.GELU(), nn.Linear(hidden, 2))
        last: Any = self.subnet[2]
        nn.init.zeros_(last.weight)
        base = max(start[0], smallest)
        with torch.no_grad():
            last.bias.copy_(torch.logit(torch.tensor([start[0] / largest, (start[1] - base) / (1 - base)])))

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> DACTerms:
        """Terms of rows of logits (N, V); N may be 0."""
        check_rows(student_logits, teacher_logits, temperature)
        return in_blocks(partial(self.rows, temperature=temperature), student_logits, teacher_logits)

    def rows(self, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> DACTerms:
        """Terms of all rows at once."""
        with torch.autocast(student_logits.device.type, enabled=False):
            p, log_p = teacher_probs(student_logits, teacher_logits, temperature)
            ascending = ascending_rows(p)
            lower, upper = self.levels(self.read(student_logits, p, log_p, ascending, temperature))
            if self.objective == "max":
                lower, upper = 2 * lower.detach() - lower, 2 * upper.detach() - upper  # the gradient turned round
            return clipped_kl(student_logits, p, log_p, ascending, lower, upper, temperature, self.clip)

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
        if self.num_classes not in (None, p.shape[1]) and "probs" in self.features:
            raise ValueError(f"num_classes={self.num_classes}, but the logits are of {p.shape[1]} classes")
        if self.features == "full_probs":
            return p
        if self.features == "student_teacher_probs":
            return torch.cat([log_probs(student_logits.detach(), temperature).exp(), p], 1)
        entropy = -torch.linalg.vecdot(p, log_p)[:, None]
        if self.features == "stats":
            largest = ascending[:, -100:].flip(1)
            return torch.cat([entropy, largest[:, :2], largest[:, :10].sum(1)[:, None], largest.sum(1)[:, None]], 1)
        found = ascending[:, -self.top_k :].flip(1).log().clamp_(min=_LEAST_LOG)
        return torch.cat([nn.functional.pad(found, (0, self.top_k - found.shape[1]), value=_LEAST_LOG), entropy], 1)
