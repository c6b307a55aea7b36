"""Training rows that two processes write are those of one."""

from pathlib import Path

import pytest
import synthesis_worker
import two_processes

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def test_equals_one_process(tmp_path: Path) -> None:
    two = two_processes.launch(synthesis_worker, "ddp", tmp_path)
    one = synthesis_worker.run("ddp", 1, tmp_path / "one")
    assert two == one
    assert len(one["rows"]) == 11 and one["report"]["dropped"] == {"near-duplicate": 4, "no JSON": 1}
    assert one["sentence"].startswith("Only 85.7% of 7 inputs have a reply with an answer")
    assert len(list((tmp_path / "out").glob("rows-*.jsonl"))) == 2
