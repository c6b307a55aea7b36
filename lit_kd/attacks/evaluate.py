"""A suite of attacks run on some samples, and what is recorded of each of them.

The verdict on a sample is that of the worst attack that kept to the ball.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lit_kd.attacks.common import attack_mode
from lit_kd.attacks.objectives import margin
from lit_kd.attacks.suite import Protocol, Suite

# Records: for each sample of a chunk "<row>/<field>", from which every number of a report follows

Records = dict[str, Tensor]


def evaluate_chunk(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    index: Tensor,
    suite: Suite,
    protocol: Protocol,
    gallery: Sequence[str] = (),
) -> Records:
    """Run a suite on some samples.

    Args:
        model: from images in [0, 1] to logits.
        image: (B, C, H, W) in [0, 1].
        label: (B,) int64.
        index: (B,) int64, the samples' names: they seed random numbers.
        suite: from :func:`build_suite`.
        protocol: its protocol.
        gallery: rows whose adversarial images are kept as well, under ``<row>/image``.

    Returns:
        (B,) tensors on the CPU. ``index``, ``label``, ``clean/correct``, ``clean/top5``, ``clean/spread`` (largest
        difference between five forward passes over the largest logit), ``worst/robust`` (no attack that kept to the
        ball has fooled the network), and for each row: ``attacked``, ``robust`` (correct, and still correct after the
        attack), ``top5`` likewise, ``rounded`` (``robust`` after rounding to 8 bits), ``repeated`` (a second forward
        pass gave the same verdict), ``l2``, ``linf``, ``zero_gradient``, ``queries``, ``margin``.
    """
    with attack_mode(model), torch.no_grad():
        image, label = image.clone(), label.clone()
        passes = torch.stack([model(image).float() for _ in range(5)])
    logits = passes[0]
    correct = logits.argmax(1) == label
    spread = (passes - logits).abs().amax((0, 2)) / logits.abs().amax(1).clamp(min=1e-12)
    worst = correct.clone()
    records = {
        "index": index,
        "label": label,
        "clean/correct": correct,
        "clean/top5": _in_top5(logits, label),
        "clean/spread": spread,
    }
    for entry in suite.entries:
        rows = (worst if entry.survivors_only else correct).nonzero().squeeze(1)
        result = entry(model, image[rows], label[rows], index[rows.to(index.device)])
        after, rounded = _logits(model, result.adversarial), _logits(model, _to_8_bits(result.adversarial))
        robust = ~result.success
        distance = result.linf if protocol.norm == "linf" else result.l2
        worst[rows] &= robust | (distance > protocol.eps + 1e-6)
        found = {
            "robust": robust,
            "top5": _in_top5(after, label[rows]),
            "rounded": rounded.argmax(1) == label[rows],
            "repeated": (after.argmax(1) == label[rows]) == robust,
            "margin": margin(after, label[rows]),
            "l2": result.l2,
            "linf": result.linf,
            "zero_gradient": result.zero_gradient,
            "queries": result.queries,
            "attacked": torch.ones_like(robust),
        }
        for name, values in found.items():
            records[f"{entry.name}/{name}"] = values.new_zeros(len(image)).index_copy(0, rows, values)
        if entry.name in gallery:
            records[f"{entry.name}/image"] = image.index_copy(0, rows, result.adversarial)
    records["worst/robust"] = worst
    if gallery:
        records["clean/image"] = image
    return {name: values.detach().cpu().contiguous() for name, values in records.items()}


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    with attack_mode(model), torch.no_grad():
        return model(image).float() if len(image) else image.new_zeros(0, 5)


def _in_top5(logits: Tensor, label: Tensor) -> Tensor:
    return (logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]).any(1)


def _to_8_bits(image: Tensor) -> Tensor:
    return (image * 255).round() / 255


def join_records(parts: Iterable[Records]) -> Records:
    """Chunks as one, sorted by ``index``; pictures of the first chunk only.

    Args:
        parts: what :func:`evaluate_chunk` gave.
    """
    chunks = sorted(parts, key=lambda part: int(part["index"].min()))
    names = [name for name in chunks[0] if not name.endswith("/image")]
    joined = {name: torch.cat([chunk[name] for chunk in chunks]) for name in names}
    order = joined["index"].argsort()
    pictures = {name: values for name, values in chunks[0].items() if name.endswith("/image")}
    return {**{name: values[order] for name, values in joined.items()}, **pictures}
