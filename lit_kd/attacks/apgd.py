"""Auto-PGD: projected gradient descent with momentum that finds its own step size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_kd.attacks.common import AttackResult, check_budget, check_loss, run_attack
from lit_kd.attacks.geometry import Norm, direction, is_zero, per_sample, project
from lit_kd.attacks.geometry import random_start as random_point
from lit_kd.attacks.objectives import Loss, margin, min_classes, objective
from lit_kd.checks import check_share, check_whole


def apgd(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    *,
    eps: float = 8 / 255,
    steps: int = 100,
    norm: Norm = "linf",
    loss: Loss = "ce",
    temperature: float = 1.0,
    restarts: int = 1,
    rho: float = 0.75,
    random_start: bool = True,
    stop_early: bool = True,
    target: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
) -> AttackResult:
    r"""Auto-PGD (Croce and Hein, arXiv:2003.01690), the walk of the official code.

    .. math::
        z_k &= P(x_k + \eta_k \, d_k),
            \quad d = sign(g) \; (L_\infty) \; or \; g / \|g\|_2 \; (L_2), \quad \eta_0 = 2 \epsilon \\
        x_{k + 1} &= P(x_k + 0.75 (z_k - x_k) + 0.25 (x_k - x_{k - 1})), \quad x_1 = z_0

    P is the projection on ball and [0, 1]. At checkpoints (after 22 % of the steps, then in windows that shrink by 3 %
    down to 6 %) a sample halves its step and goes back to its point of the largest loss if at most ``rho`` of the
    window's steps raised the loss, or if neither step nor largest loss have changed since the checkpoint before.

    As in :func:`lit_kd.attacks.pgd`, the iterate with the largest margin is kept for each sample. Where this differs
    from the official code: starts are uniform in the ball (there: on its surface), and the DLR turns into the margin
    where the label ranks third or lower (there: constant).

    Args:
        model: from images in [0, 1] to logits.
        image: (B, C, H, W) in [0, 1].
        label: (B,) int64.
        eps: radius of the ball in pixel units.
        steps: gradient steps of each restart.
        norm: ``linf`` or ``l2``.
        loss: ``ce``, ``margin`` or ``dlr``; the last two do not depend on the scale of the logits.
        temperature: of the logits in the cross-entropy.
        restarts: number of starts. A second one differs from the first only with ``random_start``.
        rho: share of steps that must raise the loss, in [0, 1].
        random_start: start from a uniform point of the ball, otherwise from the image.
        stop_early: a sample that is fooled leaves the batch: much faster, the same success.
        target: (B,) int64, the classes to be reached; None: any but the label.
        seed: of the random starts.
        index: (B,) int64 from which a sample's random starts are drawn; None: its position in ``image``.
        batch_size: most images in one forward pass; None: all.

    Raises:
        ValueError: see :func:`lit_kd.attacks.common.run_attack`; a budget, loss, share or count out of range.
    """
    check_budget(eps, norm, image)
    check_loss(loss, temperature)
    check_whole(0, steps=steps, seed=seed)
    check_whole(restarts=restarts)
    check_share(rho=rho)
    windows = _windows(steps)

    def search(image: Tensor, label: Tensor, target: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best, best_margin = image.clone(), torch.full_like(image[:, 0, 0, 0], -torch.inf)
        zero_gradient, queries = torch.zeros_like(label, dtype=torch.bool), torch.zeros_like(label)
        for restart in range(restarts):
            # `rows` are the samples that still run; all tensors of the walk hold these rows only.
            rows = (best_margin <= 0).nonzero().squeeze(1) if stop_early else torch.arange(len(image)).to(label)
            if not len(rows):
                break
            x0 = image[rows]
            x = random_point(x0, index[rows.to(index.device)], seed, restart, eps, norm) if random_start else x0
            x_before, size = x, torch.full_like(x[:, 0, 0, 0], 2 * eps)
            peak, peak_gradient, peak_value = x, torch.zeros_like(x), torch.full_like(size, -torch.inf)
            # The first step counts as a rise if its loss is above 0, not above that of the start: the official code
            # looks for the latter at the end of its list, where there is still a 0.
            value, rises = torch.zeros_like(size), torch.zeros_like(rows)
            checked_value, halved = peak_value, torch.ones_like(rows, dtype=torch.bool)
            for step in range(steps + 1):
                x0, y, t = image[rows], label[rows], None if target is None else target[rows]
                x = x.detach().requires_grad_(step < steps)
                logits = model(x)
                queries[rows] += 1
                found = margin(logits.detach(), y, t)
                better = found > best_margin[rows]
                best[rows[better]], best_margin[rows[better]] = x.detach()[better], found[better]
                if step == steps:
                    break
                value_before, value = value, objective(loss, logits, y, t, temperature)
                gradient = torch.autograd.grad(value.sum(), x)[0]
                x, value = x.detach(), value.detach()
                if step == 0 and restart == 0:
                    zero_gradient = is_zero(gradient)

                higher = value > peak_value
                peak_value = torch.where(higher, value, peak_value)
                peak = torch.where(per_sample(higher, x), x, peak)
                peak_gradient = torch.where(per_sample(higher, x), gradient, peak_gradient)
                if step == 0:
                    value, checked_value = torch.zeros_like(value), peak_value
                else:
                    rises = rises + (value > value_before)
                if step in windows:
                    halved = (rises <= rho * windows[step]) | (~halved & (checked_value >= peak_value))
                    size = torch.where(halved, size / 2, size)
                    x = torch.where(per_sample(halved, x), peak, x)
                    gradient = torch.where(per_sample(halved, x), peak_gradient, gradient)
                    checked_value, rises = peak_value, torch.zeros_like(rises)

                a = 0.75 if step else 1.0
                z = project(x + per_sample(size, x) * direction(gradient, norm), x0, eps, norm)
                x, x_before = project(x + (z - x) * a + (x - x_before) * (1 - a), x0, eps, norm), x

                running = found <= 0
                if stop_early and not running.all():
                    rows, x, x_before, size = rows[running], x[running], x_before[running], size[running]
                    peak, peak_gradient, peak_value = peak[running], peak_gradient[running], peak_value[running]
                    value, rises = value[running], rises[running]
                    checked_value, halved = checked_value[running], halved[running]
                    if not len(rows):
                        break
        return best, zero_gradient, queries

    return run_attack(search, model, image, label, target, index, batch_size, min_classes(loss, target))


def _windows(steps: int) -> dict[int, int]:
    """Checkpoints: step -> number of steps since the checkpoint before."""
    window, shrink, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    windows, step = {}, window
    while step <= steps:
        windows[step] = window
        window = max(window - shrink, least)
        step += window
    return windows
