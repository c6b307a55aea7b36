"""Scores of answers in two processes are those of one: none is counted twice, and no interval is another."""

from pathlib import Path

import answers_worker
import pytest
import two_processes

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def test_equals_one_process(tmp_path: Path) -> None:
    two = two_processes.launch(answers_worker, "ddp", tmp_path)
    one = answers_worker.run("ddp", 1, tmp_path / "one")
    first = {"number": "pass@1", "label": "strict", "overlap": "rougeL", "summary": "entity_density"}
    for kind, numbers in one.items():
        assert numbers[f"test/{first[kind]}"] > 0 and numbers["val/problems"] == 7
        assert two[kind].keys() == numbers.keys()
        bounds = [name for name in numbers if name.endswith(("_low", "_high"))]  # of a bootstrap: rows in other order
        assert {k: v for k, v in two[kind].items() if k not in bounds} == pytest.approx(
            {k: v for k, v in numbers.items() if k not in bounds}
        )
        for name in bounds:
            assert two[kind][name] == pytest.approx(numbers[name], rel=0.1, abs=0.1)
