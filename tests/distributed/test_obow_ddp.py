"""OBoW in two processes equals one with twice the batch size."""

from pathlib import Path
from typing import Any

import obow_worker
import pytest
import torch
import two_processes
from torch import Tensor

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return two_processes.launch(obow_worker, "ddp", tmp_path_factory.mktemp("obow_ddp"))


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    torch.set_num_threads(1)
    return obow_worker.run_ddp(devices=1)


def assert_same_words(actual: Tensor, expected: Tensor) -> None:
    """Up to the order within a step: ranks follow each other, while a single process interleaves their images."""
    distance, row = torch.cdist(actual, expected, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert distance.max() < 1e-4
    assert len(row.unique()) == len(expected)


@pytest.mark.parametrize("name", ["soft", "accumulated"])
def test_equals_one_process(name: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    # mu of a micro-batch is that of the batches so far, in whatever processes: soft codes agree, too.
    assert two[name]["steps"] == one[name]["steps"] == two[name]["total"] == one[name]["total"] == 8
    for key, expected in one[name]["states"].items():
        actual = two[name]["states"][key][0]
        if key.endswith("words"):
            assert_same_words(actual, expected[0])
        else:
            torch.testing.assert_close(actual, expected[0], rtol=1e-4, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", obow_worker.NAMES)
def test_ranks_agree(name: str, two: dict[str, Any]) -> None:
    for key, (first, second) in two[name]["states"].items():
        if "running_" not in key:  # batch statistics are each rank's own until the next step
            assert torch.equal(first, second), key
    assert two[name]["states"]["vocabularies.0.pointer"].tolist() == [8 * 16 % 48] * 2
    assert two[name]["states"]["teacher.clock"].tolist() == [8, 8]


def test_words_are_not_broadcast_before_each_forward(two: dict[str, Any]) -> None:
    assert two["soft"]["ignored"] == ["vocabularies.0.words", "vocabularies.1.words"]


def test_fsdp2_equals_one_process_and_resumes(tmp_path: Path) -> None:
    sharded = two_processes.launch(obow_worker, "fsdp", tmp_path)
    torch.set_num_threads(1)
    (tmp_path / "one").mkdir()
    single = obow_worker.run_fsdp(tmp_path / "one", 1)
    torch.testing.assert_close(single["resumed"], single["straight"], rtol=0, atol=0)
    torch.testing.assert_close(sharded["resumed"], sharded["straight"], rtol=0, atol=0)
    for key, expected in single["straight"].items():
        if key.endswith("words"):
            assert_same_words(sharded["straight"][key], expected)
        else:
            torch.testing.assert_close(sharded["straight"][key], expected, rtol=1e-4, atol=1e-4, msg=key)
