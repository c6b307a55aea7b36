"""Class-balanced choices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_kd.datamodules.subsets import choose_samples, choose_texts, class_indices, take_balanced, take_per_class

NAMES = ["cat", "dog", "7", "0"]


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 2**31),
)
def test_take_per_class_counts_and_nests(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    taken = take_per_class(labels, fraction, seed, at_least=1)
    assert labels[taken].bincount().tolist() == [max(1, round(fraction * n)) for n in counts]
    assert torch.equal(taken, take_per_class(labels, fraction, seed, at_least=1))
    smaller = take_per_class(labels, fraction / 2, seed, at_least=1)
    assert not (smaller & ~taken).any()


def test_choice_is_disjoint_and_validation_comes_first() -> None:
    labels = torch.arange(200) % 4
    train, val = choose_samples(labels, NAMES, [], 0.2, 1.0, seed=3)
    assert sorted(torch.cat([train, val]).tolist()) == list(range(200))
    few, same_val = choose_samples(labels, NAMES, [], 0.2, 0.1, seed=3)
    assert torch.equal(val, same_val)
    assert labels[few].bincount().tolist() == [4, 4, 4, 4]
    without, val_without = choose_samples(labels, NAMES, [1, 2], 0.2, 0.1, seed=3)
    assert torch.equal(without, few[(labels[few] == 0) | (labels[few] == 3)])
    assert torch.equal(val_without, val[(labels[val] == 0) | (labels[val] == 3)])
    assert not torch.equal(choose_samples(labels, NAMES, [], 0.2, 0.1, seed=4)[0], few)


def test_class_indices() -> None:
    assert class_indices(["dog", 0, "dog", "7"], NAMES) == [0, 1, 2]
    assert class_indices(["0"], NAMES) == [3]


@pytest.mark.parametrize(
    ("entry", "message"),
    [("dgo", "'dgo', which is no class.*such as dog"), (4, "4, which is no class.*below 4"), (-1, "-1")],
)
def test_unknown_class(entry: int | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_indices([entry], NAMES)


@pytest.mark.parametrize(
    ("labels", "omitted", "val_fraction", "message"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 0.0, "leaves no class"),
        ([0, 1, 1, 3], [], 0.0, "without a training sample.*: 7; add"),
        ([0, 0, 1, 1, 2, 2, 3], [], 0.9, "val_fraction=0.9: cat, dog, 7, 0; add"),
        ([0, 1, 2, 3], [], 0.1, "val_fraction=0.1 holds out no sample"),
    ],
)
def test_no_sample_left(labels: list[int], omitted: list[int], val_fraction: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_samples(torch.tensor(labels), NAMES, omitted, val_fraction, 1.0, seed=0)


def test_a_class_without_samples_may_be_omitted() -> None:
    train, _ = choose_samples(torch.tensor([0, 1, 1, 3]), NAMES, [2], 0.0, 1.0, seed=0)
    assert train.tolist() == [0, 1, 2, 3]


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_take_balanced_is_exact_nested_and_proportional(counts: list[int], share: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    count = round(share * len(labels))
    taken = take_balanced(labels, count, seed)
    assert taken.sum() == count
    assert not (take_balanced(labels, count // 2, seed) & ~taken).any()
    for label, size in enumerate(counts):
        assert abs(int(taken[labels == label].sum()) - count * size / len(labels)) <= len(counts)


def test_take_balanced_draws_by_the_seed() -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    first, second = take_balanced(labels, 500, 0), take_balanced(labels, 500, 1)
    assert torch.equal(first, take_balanced(labels, 500, 0))
    assert 200 < (first & second).sum() < 300


def test_chosen_texts_are_disjoint_and_validation_comes_first() -> None:
    labels = (torch.arange(100) < 20).long()
    train, val = choose_texts(labels, 0.1, 1.0, None, 5)
    assert sorted(torch.cat([train, val]).tolist()) == list(range(100))
    few, same = choose_texts(labels, 0.1, 0.5, None, 5)
    assert torch.equal(val, same) and len(few) == 45 and set(few.tolist()) < set(train.tolist())
    assert torch.equal(choose_texts(labels, 0.1, 1.0, 45, 5)[0], few)
    assert labels[val].sum() == 2 and labels[few].sum() == 9
