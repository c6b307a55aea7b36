"""The command that compares student, distilled student and teacher, on tiny networks and a task of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_toy import causal, saved

from lit_kd import synthetic
from lit_kd.datamodules import TaskDataModule
from lit_kd.language.tasks import read_task
from lit_kd.synthetic import main, plainly, questions_of

TASK = """\
system: Yes or no?
user: "{question}"
columns: {question: question, gold: gold}
labels: ["yes", "no"]
check: label
metric: label
modes:
  plain: {parser: label}
  cot: {system: Think., parser: json}
"""


@pytest.fixture
def task(tmp_path: Path) -> list[str]:
    rows = [{"question": f"Is {i} even?", "gold": ("yes", "no")[i % 2]} for i in range(4)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "task.yaml").write_text(TASK)
    return ["--task", str(tmp_path / "task.yaml"), "--root", str(tmp_path)]


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    return {
        name: saved(tmp_path / name, causal(seed=seed, max_position_embeddings=480))
        for seed, name in enumerate(("student", "distilled", "teacher"))
    }


def test_the_table_and_a_second_start(
    tmp_path: Path,
    task: list[str],
    models: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*task, "--max_new_tokens", "4", "--out", str(tmp_path / "out")]
    words += [word for name, path in models.items() for word in (f"--{name}", path)]
    words += ["--judge", models["teacher"]]
    main(words)
    text = capsys.readouterr().out
    for name in ("student, plain", "student, chain of thought", "distilled, plain", "teacher, chain of thought"):
        assert f"| {name} |" in text
    assert "strict [95 %]" in text and "lenient" in text and "sd over seeds" in text
    assert "4 questions are a smoke test" in text and "The judge is one of the systems" in text
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.strip() in text and len(list((tmp_path / "out").glob("*/manifest.json"))) == 5 * 3

    def fail(*args: Any) -> Any:
        raise AssertionError("all answers are there")

    monkeypatch.setattr(synthetic, "local", fail)
    main(words[:-2])
    assert table.splitlines()[:7] == capsys.readouterr().out.splitlines()[:7]


def test_nobody_to_ask(task: list[str]) -> None:
    with pytest.raises(ValueError, match="nobody to ask: give at least one of --student"):
        main(task)


def test_chains_of_thought_are_read_before_they_are_scored(task: list[str]) -> None:
    own = read_task(task[1])
    assert plainly(own, "cot", 'So: {"reason": "2 * 2", "answer": "Yes"}') == "yes"
    assert plainly(own, "cot", "It is yes") == "It is yes"  # for the lenient score
    assert plainly(own, "plain", "It is yes.") == "It is yes."
    asked = questions_of([TaskDataModule(task=task[1], root=task[3], mode=mode) for mode in ("plain", "cot")])
    assert asked.labels == ["yes", "no"] and asked.gold == ["yes", "no", "yes", "no"]
    assert [asked.prompts[mode][0][0]["content"] for mode in ("plain", "cot")] == ["Yes or no?", "Think."]
