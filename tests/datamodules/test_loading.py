"""The order of training, the sharing of evaluation, and the loader that resumes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_kd.datamodules import loading
from lit_kd.datamodules.loading import InMemoryImages, ResumableLoader, ShardSampler, SortedShardSampler, StreamSampler

Ranks = Callable[[int, int], None]


def stream(index: Tensor, batch_size: int, samples: int, epochs: int, seed: int = 0) -> list[dict[str, Tensor]]:
    sampler = StreamSampler(index, batch_size, samples, seed)
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches += list(sampler)
    return batches


def column(batches: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([batch[name] for batch in batches])


def loader(num_workers: int = 0, samples: int = 50) -> ResumableLoader:
    images = InMemoryImages(torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1), torch.arange(50) % 5, [])
    return ResumableLoader(
        images,
        batch_size=None,
        sampler=StreamSampler(torch.arange(50), 8, samples, 0),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),
    )


def test_stream_visits_every_sample_once_a_pass() -> None:
    index = torch.tensor([2, 3, 5, 7, 11])
    batches = stream(index, batch_size=4, samples=10, epochs=4)
    assert [len(batch["index"]) for batch in batches] == [4] * 12
    drawn, visit = column(batches, "index"), column(batches, "visit")
    assert torch.equal(visit, torch.arange(48) // 5)
    passes = [drawn[visit == v].tolist() for v in range(9)]
    assert all(sorted(order) == index.tolist() for order in passes)
    assert len({tuple(order) for order in passes}) > 5
    assert not torch.equal(column(stream(index, 4, 10, 4, seed=1), "index"), drawn)


def test_two_ranks_draw_the_global_batches_of_one(ranks: Ranks) -> None:
    index = torch.arange(100, 137)
    whole = stream(index, batch_size=6, samples=50, epochs=3)
    halves = []
    for rank in range(2):
        ranks(rank, 2)
        halves.append(stream(index, batch_size=3, samples=50, epochs=3))
    assert len(halves[0]) == len(halves[1]) == len(whole)
    for both, first, second in zip(whole, *halves, strict=True):
        for name in ("index", "visit"):
            assert torch.equal(both[name], torch.stack([first[name], second[name]], 1).flatten())


@settings(deadline=None)
@given(n=st.integers(1, 60), batch_size=st.integers(1, 20), world=st.integers(1, 5))
def test_shards_hold_each_sample_once(n: int, batch_size: int, world: int) -> None:
    original = loading.rank_and_world
    try:
        shards = []
        for rank in range(world):
            loading.rank_and_world = lambda rank=rank: (rank, world)  # type: ignore[misc]
            sampler = ShardSampler(torch.arange(n), batch_size)
            if n // world < math.ceil(math.ceil(n / world) / batch_size):
                with pytest.raises(ValueError, match="without a sample: use fewer devices"):
                    len(sampler)
                return
            shards.append([batch["index"] for batch in sampler])
    finally:
        loading.rank_and_world = original
    assert len({len(shard) for shard in shards}) == 1
    assert all(0 < len(batch) <= batch_size for shard in shards for batch in shard)
    assert sorted(torch.cat(sum(shards, [])).tolist()) == list(range(n))
    if world == 1:
        assert torch.equal(torch.cat(shards[0]), torch.arange(n))


def test_sorted_shards_have_like_lengths_and_mixed_order(ranks: Ranks) -> None:
    lengths = torch.arange(1000) * 7 % 90
    index = torch.arange(20, 1000)
    shards = []
    for rank in range(2):
        ranks(rank, 2)
        shards.append([batch["index"] for batch in SortedShardSampler(index, 16, lengths)])
    assert torch.cat([*shards[0], *shards[1]]).sort().values.equal(index)
    spans = [lengths[torch.cat(pair)].aminmax() for pair in zip(*shards, strict=True)]
    assert all(high - low <= 3 for low, high in spans), "both ranks pad to like lengths"
    first = lengths[torch.cat(shards[0][:8])].float().mean()
    assert abs(first - lengths[index].float().mean()) < 10, "limit_val_batches must not choose the short texts"
    sampler = SortedShardSampler(index, 16, lengths)
    sampler.start = 5
    assert all(a["index"].equal(b) for a, b in zip(sampler, shards[1][5:], strict=True))


def test_loader_reads_whole_batches_and_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    batches = list(loader())
    assert len(batches) == len(loader()) == 7
    assert torch.equal(batches[0]["image"].flatten(), batches[0]["index"].to(torch.uint8))
    assert torch.equal(batches[0]["label"], batches[0]["index"] % 5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_position_counts_batches_handed_out(num_workers: int) -> None:
    straight = list(loader())
    source = loader(num_workers)
    batches = iter(source)
    for _ in range(3):
        next(batches)
    state = source.state_dict()
    assert state == {"epoch": 0, "position": 3}
    resumed = loader(num_workers)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest = list(resumed)
    assert [b["index"].tolist() for b in rest] == [b["index"].tolist() for b in straight[3:]]
    assert len(resumed) == 7
    assert resumed.state_dict() == {"epoch": 1, "position": 0}
    assert len(list(resumed)) == 7  # the position holds for one iteration


def test_epochs_count_on_from_the_saved_one() -> None:
    """A trainer that calls the restored epoch 7 and the next 8 still gets epochs 2 and 3 of the stream."""
    straight = [batch["index"].tolist() for batch in stream(torch.arange(50), 8, 50, epochs=4)]
    resumed = loader()
    resumed.load_state_dict({"epoch": 2, "position": 5})
    drawn = []
    for label in (7, 8):
        resumed.sampler.set_epoch(label)
        drawn += [batch["index"].tolist() for batch in resumed]
    assert drawn == straight[2 * 7 + 5 :]
    assert resumed.state_dict() == {"epoch": 4, "position": 0}


def test_set_epoch_starts_that_epoch() -> None:
    straight = [batch["index"].tolist() for batch in stream(torch.arange(50), 8, 50, epochs=4)]
    source = loader()
    for epoch in (3, 1, 2):
        source.sampler.set_epoch(epoch)
        assert next(iter(source))["index"].tolist() == straight[7 * epoch]


def test_workers_give_the_batches_of_the_main_process() -> None:
    plain, workers = loader(), loader(num_workers=2)
    for epoch in range(2):
        batches: list[Iterator[dict[str, Tensor]]] = []
        for source in (plain, workers):
            source.sampler.set_epoch(epoch)
            batches.append(iter(source))
        for a, b in zip(*batches, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
