"""The fast gradient sign method."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_kd.attacks.common import AttackResult, check_budget, check_loss, run_attack
from lit_kd.attacks.geometry import is_zero
from lit_kd.attacks.objectives import Loss, min_classes, objective


def fgsm(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    *,
    eps: float = 8 / 255,
    loss: Loss = "ce",
    temperature: float = 1.0,
    target: Tensor | None = None,
    batch_size: int | None = None,
) -> AttackResult:
    r"""Fast gradient sign method (Goodfellow et al., arXiv:1412.6572).

    .. math:: x' = clip_{[0, 1]}(x + \epsilon \, sign \nabla_x L(z(x), y))

    With a target t the loss is ``-CE(z, t)``, so the step goes down in CE.

    Args:
        model: from images in [0, 1] to logits.
        image: (B, C, H, W) in [0, 1].
        label: (B,) int64.
        eps: Linf budget in pixel units.
        loss: ``ce``, ``margin`` or ``dlr``.
        temperature: the logits are divided by it in the cross-entropy: the training temperature of a defensively
            distilled network undoes the saturation of its softmax.
        target: (B,) int64, the classes to be reached; None: any but the label.
        batch_size: most images in one forward pass; None: all.

    Raises:
        ValueError: see :func:`lit_kd.attacks.common.run_attack`; an eps outside [0, 1], an unknown loss.
    """
    check_budget(eps, "linf", image)
    check_loss(loss, temperature)

    def search(image: Tensor, label: Tensor, target: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image.requires_grad_()
        # A sum, not a mean: the gradient of a sample does not underflow because its batch is large.
        gradient = torch.autograd.grad(objective(loss, model(image), label, target, temperature).sum(), image)[0]
        image.requires_grad_(False)
        adversarial = (image + eps * gradient.sign()).clamp(0, 1)
        return adversarial, is_zero(gradient), torch.ones_like(label)

    return run_attack(search, model, image, label, target, None, batch_size, min_classes(loss, target))
