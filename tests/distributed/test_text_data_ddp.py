"""Two processes see the texts of one with twice the batch size."""

from pathlib import Path
from typing import Any

import pytest
import text_data_worker
import torch
import two_processes

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return two_processes.launch(text_data_worker, "ddp", tmp_path_factory.mktemp("text_data"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("text_data_one")
    return text_data_worker.run(folder, devices=1)


def test_buckets_are_those_of_one_process(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert two["drawn"] == one["drawn"] and len(one["drawn"]) == 10
    assert torch.tensor([i for batch in two["drawn"] for i in batch]).bincount().aminmax() == (2, 3)
    assert sum(abs(a - b) for a, b in two["lengths"]) <= len(two["lengths"]), "ranks pad to like lengths"


def test_each_text_is_evaluated_once(one: dict[str, Any], two: dict[str, Any]) -> None:
    """37 on two ranks: a sampler that pads would count one twice."""
    assert sorted(i for rank in two["tested"] for i in rank) == list(range(text_data_worker.SAMPLES))
    assert [len(rank) for rank in two["tested"]] == [19, 18]
    assert sorted(one["tested"][0]) == list(range(text_data_worker.SAMPLES))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_goes_on_on_every_rank(num_workers: int, two: dict[str, Any]) -> None:
    runs = two[f"stream {num_workers}"]
    assert runs["straight"][0] != runs["straight"][1]
    for straight, resumed in zip(runs["straight"], runs["resumed"], strict=True):
        assert len(straight) == 7 and resumed == straight[3:]
    for rank, seen in enumerate(runs["straight"]):
        workers = max(1, num_workers)
        assert {i % (2 * workers) // workers for index, _ in seen for i in index} == {rank}
