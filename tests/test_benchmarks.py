"""The benchmark of all methods runs; what it finds is no test's matter."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import all as table
from benchmarks.cases import CASES
from benchmarks.steps import BARE
from lit_kd import methods

NO_MODULES = {"Distill", "FixedData", "OnPolicy", "Replay", "SCRG", "SequenceSource", "TeacherMixed"}
# They train as Classifier and SSBDistill, write as Rollouts, or read once.
LIKE_ANOTHER = {"FineTune", "LanguageDistill", "Refinement", "Synthesis", "TeacherLogits"}


@pytest.mark.slow
def test_a_case_is_measured_in_processes_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "numbers.json"
    words = "--quick --rounds 1 --steps 1 --only LinearEvaluation"
    table.main([*words.split(), "--out", str(out)])
    found = json.loads(out.read_text())
    (case,) = found["cases"].values()
    assert found["environment"]["versions"]["torch"]
    assert case["apart"] < table.TOLERANCE  # the Trainer's weights are the bare loop's
    assert 0 < case["data"][0] < case["seconds"][0]
    assert all(memory > 0 for memory in case["peak_mib"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| LinearEvaluation |")
    assert last.count("|") == table.HEAD.splitlines()[0].count("|")


def test_a_bare_loop_that_does_other_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "in_new_process", lambda *_: {"apart": 0.5, "base": BARE})
    with pytest.raises(RuntimeError, match="Classifier ends 0.5 of the way apart"):
        table.measure("Classifier", argparse.Namespace(quick=True))


def test_every_method_has_a_case() -> None:
    names = {name for name in methods.__all__ if name[0].isupper()} - NO_MODULES - LIKE_ANOTHER
    assert names <= {name.split()[0] for name in CASES}
