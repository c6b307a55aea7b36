"""MGSR in two processes equals one: sequences, tokens and branches are the same, and no process waits for another."""

from pathlib import Path
from typing import Any

import mgsr_worker
import pytest
import torch
import two_processes

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def assert_near(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert two.keys() == one.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_ddp(tmp_path: Path) -> None:
    two = two_processes.launch(mgsr_worker, "ddp", tmp_path)
    torch.set_num_threads(1)
    one = mgsr_worker.run("ddp", 1, tmp_path / "one")
    assert any(key.startswith("measure.subnet") for key in one["written"])
    assert_near(two["written"], one["written"])
    first, second = two["seen"]
    assert first == second and {(step["written"], step["replayed"]) for step in first[0]} == {(0, 0), (1, 0), (0, 1)}
    assert first[1] == first[0][6:]  # resumed
    assert_near(two["resumed"], two["replayed"])
    own, other = two["saved"]
    assert own["phi"] == other["phi"] and own["previous"] == other["previous"]
    assert not torch.equal(own["tokens"], other["tokens"])  # each has its own buffer
    assert two["steps"] == 4  # with no completion in one of the processes


def test_fsdp(tmp_path: Path) -> None:
    two = two_processes.launch(mgsr_worker, "fsdp", tmp_path)
    torch.set_num_threads(1)
    assert_near(two["fixed"], mgsr_worker.run("fsdp", 1, tmp_path / "one")["fixed"])
    writes, parameters = two["refused"]
    assert "source=OnPolicy lets the student write, which is sharded here: train with ddp" in writes
    assert "divergence=DACKL has parameters, which FSDP2 would shard apart" in parameters
