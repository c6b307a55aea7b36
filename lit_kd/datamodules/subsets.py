"""Which samples to train and to validate on: pure functions of labels, names and a seed."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor


def class_indices(entries: Sequence[int | str], class_names: list[str]) -> list[int]:
    """Sorted indices of classes given by index or name; a name wins where it could be read as either.

    Raises:
        ValueError: If there is no such class; the sentence offers the nearest names.
    """
    indices = set()
    for entry in entries:
        if entry in class_names:
            indices.add(class_names.index(str(entry)))
        elif isinstance(entry, int) and 0 <= entry < len(class_names):
            indices.add(entry)
        else:
            near = get_close_matches(str(entry), class_names, cutoff=0.4) or class_names[:5]
            raise ValueError(
                f"omit_classes names {entry!r}, which is no class: give an index below {len(class_names)} "
                f"or a name such as {', '.join(near)}."
            )
    return sorted(indices)


def take_per_class(labels: Tensor, fraction: float, seed: int, at_least: int = 0) -> Tensor:
    """Mark max(at_least, round(fraction * n_c)) of the n_c samples of each class, chosen by the seed.

    Args:
        labels: int64 (n,).
        fraction: Share of each class; a smaller share at the same seed is a subset of a larger one.
        seed: Seed of the choice.
        at_least: Fewest samples of a class.

    Returns:
        bool (n,).
    """
    taken = torch.zeros_like(labels, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        count = max(at_least, round(fraction * len(members)))
        taken[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return taken


def take_balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """Mark `count` samples, of each class its share, chosen by the seed.

    Args:
        labels: int64 (n,); all equal: the choice is uniform.
        count: Number of samples; fewer at the same seed are a subset of more.
        seed: Seed of the choice.

    Returns:
        bool (n,).
    """
    # The k-th drawn of a class of m stands at (k + 1/2) / m; the `count` smallest hold like shares of all classes.
    place = torch.zeros(len(labels), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        place[members[torch.randperm(len(members), generator=generator)]] = (
            torch.arange(len(members), dtype=torch.float64) + 0.5
        ) / len(members)
    taken = torch.zeros_like(labels, dtype=torch.bool)
    taken[place.argsort(stable=True)[:count]] = True
    return taken


def choose_texts(
    labels: Tensor, val_fraction: float, train_fraction: float, train_samples: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Positions of the training and of the validation texts, with like shares of all classes, disjoint and sorted.

    Args:
        labels: int64 (N,), of all texts.
        val_fraction: Share for validation, taken out first.
        train_fraction: Share of the rest for training, at least one text.
        train_samples: Number of texts of the rest for training, in the place of their share.
        seed: Seed of the choice.

    Raises:
        ValueError: If there are too few texts.
    """
    held_out = take_balanced(labels, round(val_fraction * len(labels)), seed)
    rest = (~held_out).nonzero()[:, 0]
    if val_fraction and not held_out.any():
        raise ValueError(f"val_fraction={val_fraction} of {len(labels)} texts holds out none: raise it, or set 0.")
    if len(rest) < (train_samples or 1):
        raise ValueError(
            f"train_samples={train_samples or 1} is more than the {len(rest)} texts that there are at "
            f"val_fraction={val_fraction}: lower one of them."
        )
    count = train_samples or max(1, round(train_fraction * len(rest)))
    return rest[take_balanced(labels[rest], count, seed)], held_out.nonzero()[:, 0]


def choose_samples(
    labels: Tensor,
    class_names: list[str],
    omitted: list[int],
    val_fraction: float,
    train_fraction: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Positions of the training and of the validation samples, class-balanced, disjoint and sorted.

    Validation is taken out first, whatever `train_fraction` and `omitted` are, and loses the omitted classes
    too.

    Args:
        labels: int64 (N,), of the whole training set.
        class_names: Names of all classes.
        omitted: Indices of the classes to leave out of both.
        val_fraction: Share of each class for validation.
        train_fraction: Share of the rest of each class for training, at least one sample.
        seed: Seed of the choice.

    Raises:
        ValueError: If all classes are omitted, a class has no training sample, or validation gets none at
            all.
    """
    if len(omitted) == len(class_names):
        raise ValueError(f"omit_classes={omitted} leaves no class: keep at least one.")
    is_val = take_per_class(labels, val_fraction, seed)
    counts = labels[~is_val].bincount(minlength=len(class_names)).tolist()
    empty = [name for i, name in enumerate(class_names) if counts[i] == 0 and i not in omitted]
    if empty:
        raise ValueError(
            f"Classes without a training sample at val_fraction={val_fraction}: {', '.join(empty)}; add "
            "images, lower val_fraction, or name them in omit_classes."
        )
    kept = ~torch.isin(labels, torch.tensor(omitted, dtype=torch.int64))
    rest = (~is_val).nonzero()[:, 0]
    train = rest[take_per_class(labels[rest], train_fraction, seed, at_least=1)]
    val = (is_val & kept).nonzero()[:, 0]
    if val_fraction and not len(val):
        raise ValueError(f"val_fraction={val_fraction} holds out no sample of any class: raise it, or set 0.")
    return train[kept[train]], val
