"""What every attack shares: its result, the mode of the attacked network, the run and the checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from typing import get_args

import torch
from torch import Tensor, nn

from lit_kd.attacks.geometry import Norm, l2_norm
from lit_kd.attacks.objectives import Loss, margin
from lit_kd.checks import check_choice, check_network, check_not_negative, check_positive, check_whole_or_none
from lit_kd.models.modes import eval_mode


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for each of B samples.

    Attributes:
        adversarial: (B, C, H, W) in [0, 1]. Attacks within a ball give the best iterate, whether it succeeds or not;
            minimal-norm attacks give the clean image where they fail.
        success: (B,) bool: ``adversarial``, as returned, is not classified as the label (is, as the target).
        l2: (B,) distance of ``adversarial`` from the image, in pixel units.
        linf: (B,) likewise.
        zero_gradient: (B,) bool: at the attack's first step the whole gradient was exactly 0.
        queries: (B,) int64: forward passes that the sample took.
    """

    adversarial: Tensor
    success: Tensor
    l2: Tensor
    linf: Tensor
    zero_gradient: Tensor
    queries: Tensor


@contextmanager
def attack_mode(model: nn.Module) -> Iterator[None]:
    """The network as an attack needs it; every flag is restored at the end, also after an exception.

    Eval mode, gradients on (even under ``no_grad`` or in Lightning's test loop, which runs in inference mode),
    parameters frozen, autocast off.

    Args:
        model: the network.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    device = next((tensor.device.type for tensor in chain(model.parameters(), model.buffers())), "cpu")
    with (
        eval_mode(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device, enabled=False),
    ):
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)


# The run: checks, chunks, the verdict on what is returned

# (image, label, target, index) of one chunk -> adversarial, zero_gradient (B,), queries (B,)
Search = Callable[[Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor, Tensor]]


def run_attack(
    search: Search,
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    target: Tensor | None,
    index: Tensor | None = None,
    batch_size: int | None = None,
    classes: int = 2,
    confidence: float = 0.0,
) -> AttackResult:
    """Check the input, run ``search`` in :func:`attack_mode` chunk by chunk, and judge what it returns.

    A success is an image of another class (of the target); where ``confidence`` is positive, by at least that margin.

    Raises:
        ValueError: images outside [0, 1], labels outside the classes, fewer than ``classes`` logits, probabilities
            instead of logits, a batch size below 1.
    """
    check_network(model=model)
    check_whole_or_none(batch_size=batch_size)
    index = torch.arange(len(image)) if index is None else index
    check_images(image)
    with attack_mode(model):
        # An inference tensor can not enter a graph, a view of it neither; clamped by less than the tolerance.
        image, label = image.detach().clone().clamp_(0, 1), label.detach().clone()
        target = None if target is None else target.detach().clone()
        if len(image):
            check_classes(model, image[:1], label, target, classes)
        size = batch_size or max(len(image), 1)
        parts = []
        for at in range(0, max(len(image), 1), size):
            rows = slice(at, at + size)
            t = None if target is None else target[rows]
            parts.append(_run_chunk(search, model, image[rows], label[rows], t, index[rows], confidence))
        # Here, as outside of the mode they could become inference tensors.
        return AttackResult(*(torch.cat([getattr(p, field.name) for p in parts]) for field in fields(AttackResult)))


def _run_chunk(
    search: Search,
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    target: Tensor | None,
    index: Tensor,
    confidence: float,
) -> AttackResult:
    if not len(image):
        nothing = image.flatten(1).sum(1)
        return AttackResult(image, label.bool(), nothing, nothing, label.bool(), label)
    adversarial, zero_gradient, queries = search(image, label, target, index)
    with torch.no_grad():
        logits = model(adversarial)
    prediction = logits.argmax(1)
    success = prediction != label if target is None else prediction == target
    if confidence:
        success &= margin(logits, label, target) >= confidence
    difference = adversarial - image
    linf = difference.flatten(1).abs().amax(1)
    return AttackResult(adversarial, success, l2_norm(difference), linf, zero_gradient, queries)


def count_classes(model: nn.Module, image: Tensor) -> int:
    """Number of logits, by a look at the first image, which a network that comes in train mode does not learn from."""
    with attack_mode(model), torch.no_grad():
        return model(image[:1].clone()).shape[1]


def check_images(image: Tensor) -> None:
    """Raise a ValueError unless images are float32 or float64 (B, C, H, W) in [0, 1], up to a rounding of 1e-6."""
    if image.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"Images of {image.dtype}: an attack needs float32 or float64 pixels in [0, 1].")
    if image.dim() != 4:
        raise ValueError(f"Images of shape {tuple(image.shape)}: an attack needs (B, C, H, W).")
    if len(image):
        low, high = image.aminmax()
        if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN fails, too
            raise ValueError(
                f"Images span [{low:.3g}, {high:.3g}] and an attack needs pixels in [0, 1]: divide 0..255 by 255, and "
                "give the normalisation to the network (lit_kd.models.vision_model, PixelModel)."
            )


def check_classes(model: nn.Module, image: Tensor, label: Tensor, target: Tensor | None, classes: int) -> None:
    """Raise a ValueError unless the network gives logits, enough of them for the labels and for the loss."""
    with torch.no_grad():
        logits = model(image)
    if logits.dim() != 2:
        raise ValueError(f"The network gives an output of shape {tuple(logits.shape)}: an attack needs logits (B, C).")
    if not torch.isfinite(logits).all():
        raise ValueError("The network gives logits that are not finite: there is nothing to attack.")
    check_logits(logits)
    count = logits.shape[1]
    if count < classes:
        raise ValueError(
            f"The network has {count} classes and loss='dlr' needs {classes}: take loss='margin', defined for any."
        )
    for name, values in (("label", label), ("target", target)):
        if values is None:
            continue
        if values.dtype != torch.int64 or values.dim() != 1:
            raise ValueError(f"{name} must be int64 (B,), got {values.dtype} {tuple(values.shape)}.")
        if values.min() < 0 or values.max() >= count:
            raise ValueError(
                f"{name} spans [{values.min()}, {values.max()}] but the network has {count} classes, 0 to {count - 1}."
            )


def check_logits(logits: Tensor) -> None:
    """Raise a ValueError where the output (B, C) looks like probabilities: their gradients vanish by saturation."""
    if (logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-4).all():
        raise ValueError(
            "The network gives probabilities (in [0, 1], sum 1): an attack needs logits, remove the softmax at its end."
        )


def check_budget(eps: float, norm: Norm, image: Tensor) -> None:
    """Raise a ValueError for an eps that is not a distance between images in [0, 1]."""
    check_choice(get_args(Norm), norm=norm)
    check_not_negative(eps=eps)
    largest = 1.0 if norm == "linf" else math.prod(image.shape[1:]) ** 0.5
    if eps > largest:
        raise ValueError(
            f"eps={eps} must lie in [0, {largest:.4g}], the {norm} distances of pixels in [0, 1]: write 8/255, not 8."
        )


def check_loss(loss: Loss, temperature: float) -> None:
    """Raise a ValueError for an unknown loss or a temperature that is not positive."""
    check_choice(get_args(Loss), loss=loss)
    check_positive(temperature=temperature)
