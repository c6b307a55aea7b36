"""Projected gradient descent in the Linf or the L2 ball."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_kd.attacks.common import AttackResult, check_budget, check_loss, run_attack
from lit_kd.attacks.geometry import Norm, direction, is_zero, project
from lit_kd.attacks.geometry import random_start as random_point
from lit_kd.attacks.objectives import Loss, margin, min_classes, objective
from lit_kd.checks import check_not_negative, check_whole


def pgd(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    *,
    eps: float = 8 / 255,
    alpha: float | None = None,
    steps: int = 20,
    norm: Norm = "linf",
    loss: Loss = "ce",
    temperature: float = 1.0,
    restarts: int = 1,
    random_start: bool = True,
    stop_early: bool = True,
    target: Tensor | None = None,
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int | None = None,
) -> AttackResult:
    r"""Projected gradient descent (Madry et al., arXiv:1706.06083).

    .. math:: x \leftarrow clip_{[0, 1]}(\Pi_{B(x_0, \epsilon)}(x + \alpha \, d)),
        \quad d = sign(g) \; (L_\infty) \; or \; g / \|g\|_2 \; (L_2)

    Of all iterates of all restarts the one with the largest margin is kept for each sample, never just the last.

    Args:
        model: from images in [0, 1] to logits.
        image: (B, C, H, W) in [0, 1].
        label: (B,) int64.
        eps: radius of the ball in pixel units.
        alpha: step; None: eps / 4.
        steps: gradient steps of each restart.
        norm: ``linf`` or ``l2``.
        loss: ``ce``, ``margin`` or ``dlr``; the last two do not depend on the scale of the logits.
        temperature: of the logits in the cross-entropy.
        restarts: number of starts. A second one differs from the first only with ``random_start``.
        random_start: start from a uniform point of the ball, otherwise from the image.
        stop_early: a sample that is fooled leaves the batch: much faster, the same success.
        target: (B,) int64, the classes to be reached; None: any but the label.
        seed: of the random starts.
        index: (B,) int64 from which a sample's random starts are drawn; None: its position in ``image``.
        batch_size: most images in one forward pass; None: all.

    Raises:
        ValueError: see :func:`lit_kd.attacks.common.run_attack`; a budget, loss or count out of range.
    """
    check_budget(eps, norm, image)
    check_loss(loss, temperature)
    check_whole(0, steps=steps, seed=seed)
    check_whole(restarts=restarts)
    check_not_negative(alpha=0.0 if alpha is None else alpha)
    step_size = eps / 4 if alpha is None else alpha

    def search(image: Tensor, label: Tensor, target: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        best, best_margin = image.clone(), torch.full_like(image[:, 0, 0, 0], -torch.inf)
        zero_gradient, queries = torch.zeros_like(label, dtype=torch.bool), torch.zeros_like(label)
        for restart in range(restarts):
            # `rows` are the samples that still run; x, x0, y and t hold these rows only.
            rows = (best_margin <= 0).nonzero().squeeze(1) if stop_early else torch.arange(len(image)).to(label)
            if not len(rows):
                break
            x0, y, t = image[rows], label[rows], None if target is None else target[rows]
            x = random_point(x0, index[rows.to(index.device)], seed, restart, eps, norm) if random_start else x0.clone()
            for step in range(steps + 1):
                if not len(rows):
                    break
                x.requires_grad_(step < steps)
                logits = model(x)
                queries[rows] += 1
                found = margin(logits.detach(), y, t)
                better = found > best_margin[rows]
                best[rows[better]], best_margin[rows[better]] = x.detach()[better], found[better]
                if step == steps:
                    break
                gradient = torch.autograd.grad(objective(loss, logits, y, t, temperature).sum(), x)[0]
                if step == 0 and restart == 0:
                    zero_gradient[rows] = is_zero(gradient)
                x = x.detach()
                running = found <= 0
                if stop_early and not running.all():
                    rows, x, x0, y, gradient = rows[running], x[running], x0[running], y[running], gradient[running]
                    t = None if t is None else t[running]
                x = project(x + step_size * direction(gradient, norm), x0, eps, norm)
        return best, zero_gradient, queries

    return run_attack(search, model, image, label, target, index, batch_size, min_classes(loss, target))
