"""The attack of Carlini and Wagner: the nearest image, in L2, of another class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lit_kd.attacks.common import AttackResult, run_attack
from lit_kd.attacks.geometry import is_zero, l2_norm, per_sample
from lit_kd.attacks.objectives import margin
from lit_kd.checks import check_not_negative, check_positive, check_whole


def carlini_wagner(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    *,
    confidence: float = 0.0,
    steps: int = 50,
    search_steps: int = 9,
    initial_c: float | None = None,
    lr: float = 1e-2,
    target: Tensor | None = None,
    stop_early: bool = True,
    batch_size: int | None = None,
) -> AttackResult:
    r"""Carlini and Wagner's L2 attack (arXiv:1608.04644), with a search over c for each sample.

    .. math:: \min_{x' \in [0, 1]} \|x' - x\|_2^2 + c \, f(x'), \quad f = \max(\kappa - m(x'), 0)

    m is the margin ``max_{j != y} z_j - z_y``, or ``z_t - max_{j != t} z_j`` for a target, and kappa the confidence.
    After a success c is halved towards the largest c that has failed, after a failure it goes up tenfold or to the
    middle. An image counts as a success only if its own margin exceeds kappa by the rounding of the logits; the nearest
    success of all steps is returned, and the clean image where there is none. A sample that is misclassified as it
    comes is a success at distance 0.

    Four things differ from the authors' code, for fewer steps at the same distance (docs/benchmarks.md). Without a
    target the descent keeps to the class whose linearised border is nearest, out of the three best other logits. Adam
    walks over pixels that are clipped to [0, 1], not over ``atanh(2 x - 1)``, in which pixels at 0 and 1 hardly move
    for hundreds of steps. The first c and the step size of a sample come from its linearised distance
    ``d = (kappa - m) / ||grad m||``: c = 3 d / ||grad m||, and a step of d / sqrt(pixels), at most ``lr``. And the step
    size falls linearly to 0 within a round.

    Args:
        model: from images in [0, 1] to logits.
        image: (B, C, H, W) in [0, 1].
        label: (B,) int64.
        confidence: kappa >= 0, the margin to be reached, in units of the logits.
        steps: of Adam in each round of the search.
        search_steps: rounds, each with another c.
        initial_c: c of the first round; None: by the linearisation.
        lr: largest step size of a pixel.
        target: (B,) int64, the classes to be reached; None: any but the label.
        stop_early: a round of a sample ends when its loss has stopped falling, its search when a round has gained less
            than 1 %. Never by the loss of the batch.
        batch_size: most images in one forward pass; None: all.

    Raises:
        ValueError: see :func:`lit_kd.attacks.common.run_attack`; a setting out of range.
    """
    check_whole(steps=steps, search_steps=search_steps)
    check_not_negative(confidence=confidence)
    check_positive(lr=lr, initial_c=1.0 if initial_c is None else initial_c)

    def search(image: Tensor, label: Tensor, target: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        aim = _nearest_class(model, image, label, confidence) if target is None else target
        gap, lacks, slope = _look(model, image, label, target, aim, confidence)
        norm = l2_norm(slope).clamp(min=torch.finfo(image.dtype).tiny)
        edge = image[0].numel() ** 0.5  # the longest distance between images, and that of a step of 1 in each pixel
        distance = (lacks / norm).clamp(0, edge)
        c = 3 * distance / norm if initial_c is None else torch.full_like(gap, initial_c)
        lowest_c, highest_c = torch.zeros_like(c), torch.full_like(c, torch.inf)
        best, best_l2 = image.clone(), torch.where(gap < 0, 0.0, torch.inf).to(gap)
        queries = torch.full_like(label, 2 if target is None else 1)
        zero_gradient = is_zero(slope) & (gap >= 0)
        rows = ((gap >= 0) & ~zero_gradient).nonzero().squeeze(1)
        for _ in range(search_steps):
            if not len(rows):
                break
            t = None if target is None else target[rows]
            batch = (
                image[rows],
                label[rows],
                t,
                aim[rows],
                slope[rows],
                c[rows],
                (distance[rows] / edge).clamp(max=lr),
            )
            found, l2, cost = _descend(model, *batch, confidence, steps, stop_early)
            queries[rows] += cost
            won = l2.isfinite()
            nearer, gains = l2 < best_l2[rows], l2 < 0.99 * best_l2[rows]
            best[rows[nearer]], best_l2[rows[nearer]] = found[nearer], l2[nearer]
            highest_c[rows[won]], lowest_c[rows[~won]] = c[rows[won]], c[rows[~won]]
            continues = gains | (lowest_c[rows] == 0) | highest_c[rows].isinf() | (not stop_early)
            middle = (lowest_c[rows] + highest_c[rows]) / 2
            c[rows] = torch.where(highest_c[rows].isinf(), 10 * c[rows], middle)
            rows = rows[continues]
        return best, zero_gradient, queries

    return run_attack(search, model, image, label, target, None, batch_size, confidence=confidence)


def _descend(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    target: Tensor | None,
    aim: Tensor,
    slope: Tensor,
    c: Tensor,
    step_size: Tensor,
    confidence: float,
    steps: int,
    stop_early: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One round: the nearest success, its distance (B,), infinite for none, and the queries (B,)."""
    best, best_l2, queries = image.clone(), torch.full_like(c, torch.inf), torch.zeros_like(label)
    # Adam by hand, as samples leave the batch: their moments have to leave with them. First moment 0.8, second 0.999.
    rows, x, x0, y, t, a = torch.arange(len(image)).to(label), image, image, label, target, aim
    gradient, m, v = per_sample(c, slope) * slope, torch.zeros_like(x), torch.zeros_like(x)
    lowest, checked = torch.full_like(c, torch.inf), torch.full_like(c, torch.inf)
    for step in range(steps):
        m, v = m.lerp(gradient, 0.2), v.lerp(gradient.square(), 0.001)
        rate = (1 - step / steps) * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.8 ** (step + 1))
        x = (x - rate * per_sample(step_size, x) * m / (v.sqrt() + 1e-8)).clamp(0, 1)
        last = step == steps - 1
        gap, lacks, slope = _look(model, x, y, t, a, confidence, slope=not last)
        queries[rows] += 1
        l2 = l2_norm(x - x0)
        nearer = (gap < 0) & (l2 < best_l2[rows])
        best[rows[nearer]], best_l2[rows[nearer]] = x[nearer], l2[nearer]
        if last:
            break
        gradient = per_sample(c * (lacks > 0), x) * slope + 2 * (x - x0)
        lowest = torch.minimum(lowest, l2.square() + c * lacks.clamp(min=0))
        if stop_early and (step + 1) % max(steps // 10, 1) == 0:
            # A round that has succeeded goes on, as its distance may still fall; one that fails may give up.
            going = (lowest < 0.99 * checked) | best_l2[rows].isfinite()
            checked = lowest
            if not going.all():
                rows, x, x0, y, a, c, step_size = (values[going] for values in (rows, x, x0, y, a, c, step_size))
                m, v, gradient, lowest, checked = (values[going] for values in (m, v, gradient, lowest, checked))
                t = None if t is None else t[going]
                if not len(rows):
                    break
    return best, best_l2, queries


def _nearest_class(model: nn.Module, image: Tensor, label: Tensor, confidence: float, candidates: int = 3) -> Tensor:
    """(B,) of the best other logits the class with the smallest ``(z_y - z_j + kappa) / ||grad (z_y - z_j)||``.

    That is the nearest border, if the network is linear. The best other logit may belong to a border that is further
    away, and the descent would stay with it.
    """
    image = image.detach().requires_grad_()
    logits = model(image)
    own = logits.gather(1, label[:, None])
    others = logits.detach().scatter(1, label[:, None], -torch.inf).topk(min(candidates, logits.shape[1] - 1)).indices
    gaps = own - logits.gather(1, others) + confidence
    slopes = [torch.autograd.grad(gap.sum(), image, retain_graph=True)[0] for gap in gaps.unbind(1)]
    norms = torch.stack([l2_norm(slope) for slope in slopes], dim=1).clamp(min=torch.finfo(image.dtype).tiny)
    return others.gather(1, (gaps.detach() / norms).argmin(1, keepdim=True)).squeeze(1)


def _look(
    model: nn.Module,
    x: Tensor,
    label: Tensor,
    target: Tensor | None,
    aim: Tensor,
    confidence: float,
    slope: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the margin lacks, negative for a success; what the class ``aim`` lacks, and its gradient if wanted."""
    x = x.detach().requires_grad_(slope)
    logits = model(x)
    # In another batch the logits may be rounded otherwise; what is returned must still be a success.
    needed = confidence + 16 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(1)
    gap = needed - margin(logits, label, target)
    # Untargeted, the descent keeps to one class; a target has to beat all others.
    lacks = (
        gap
        if target is not None
        else needed + (logits.gather(1, label[:, None]) - logits.gather(1, aim[:, None]))[:, 0]
    )
    gradient = torch.autograd.grad(lacks.sum(), x)[0] if slope else torch.zeros_like(x)
    return gap.detach(), lacks.detach(), gradient
