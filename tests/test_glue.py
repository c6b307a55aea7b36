"""``python -m lit_kd.glue`` on tiny data: the table, its numbers, and that it goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from text_toy import TinyGLUE, classifier

from lit_kd import glue
from lit_kd.language.glue import GLUE_TASKS

WORDS = ["--model", "student", "--accelerator", "cpu", "--lr", "0.02"]


@pytest.fixture(autouse=True)
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tiny parts in the place of the real ones; the tasks that were trained."""
    tasks: list[str] = []

    def text_encoder(path: str, head: str, num_labels: int) -> Any:
        assert (path, head) == ("student", "sequence_classification")
        return classifier(num_labels, seed=torch.initial_seed())

    class Data(TinyGLUE):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings, samples=16, eval_samples=16)
            tasks.append(self.task)
            self.settings = settings
            assert settings["tokenizer"] == "student"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lit_kd.models.text_encoder", text_encoder, raising=False)
    monkeypatch.setattr("lit_kd.datamodules.GLUEDataModule", Data, raising=False)
    return tasks


def rows(printed: str) -> dict[str, list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_all_tasks_in_one_table(built: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    glue.main([*WORDS, "--squad2", "72.9"])
    assert sorted(built) == sorted(GLUE_TASKS)
    content = json.loads(Path("runs/glue/student.json").read_text())
    assert len(content["runs"]) == 9 and content["settings"]["batch_size"] == 32
    metrics = {run["task"]: run["metrics"] for run in content["runs"]}
    assert metrics["mnli"].keys() == {"loss", "accuracy", "mismatched_loss", "mismatched_accuracy"}
    table = rows(capsys.readouterr().out)
    head, ours = table["dev sets"], table["**student** (seeds: 1)"]
    assert head == [
        "SQuAD2", "MNLI-m", "SST-2", "QNLI", "CoLA", "RTE", "MRPC", "QQP", "STS-B", "WNLI", "avg", "avg of GLUE"
    ]  # fmt: skip
    found = dict(zip(head, ours, strict=True))
    assert found["SQuAD2"] == "72.9" and found["CoLA"] == f"{100 * metrics['cola']['matthews']:.1f}"
    assert found["STS-B"] == f"{100 * metrics['stsb']['pearson']:.1f}"
    eight = [float(found[title]) for title in head[:8]]
    assert float(found["avg"]) == pytest.approx(sum(eight) / 8, abs=0.1)


def test_averages_of_the_paper() -> None:
    table = rows(glue.table("x", []))
    averages = {name.split(",")[0]: cells[8] for name, cells in table.items() if cells[8] not in ("avg", "–")}
    assert averages == {
        "BERT-base": "81.5", "DistilBERT 6x768": "75.2", "TinyBERT 6x768": "79.1", "MiniLM 6x768": "80.4",
        "MiniLM 12x384": "83.1", "MiniLM 6x384 with assistant": "79.6", "---": "---",
    }  # fmt: skip
    assert table["MiniLM 6x384, 22M"] == ["72.4", "82.2", "91.0", *["–"] * 7]


def test_goes_on_where_it_stopped(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fine_tune = glue.fine_tune

    def stop(run: Any, *args: Any) -> Any:
        if run["task"] == "rte" and run["seed"] == 1:
            raise KeyboardInterrupt
        return fine_tune(run, *args)

    words = [*WORDS, "--tasks", "sst2", "rte", "--seeds", "0", "1", "--results", "r.json"]
    monkeypatch.setattr(glue, "fine_tune", stop)
    with pytest.raises(KeyboardInterrupt):
        glue.main(words)
    assert built == ["sst2", "sst2", "rte"]
    before = json.loads(Path("r.json").read_text())["runs"]
    monkeypatch.setattr(glue, "fine_tune", fine_tune)
    glue.main(words)
    assert built == ["sst2", "sst2", "rte", "rte"]
    after = json.loads(Path("r.json").read_text())["runs"]
    assert after[:3] == before and (after[3]["task"], after[3]["seed"]) == ("rte", 1)
    glue.main(words)
    assert len(built) == 4 and [path.name for path in Path.cwd().iterdir()] == ["r.json"]


def test_best_of_the_grid_is_a_mean_over_seeds() -> None:
    values = {(1e-5, 3): (0.5, 0.9), (2e-5, 3): (0.8, 0.8), (2e-5, 5): (float("nan"), 1.0)}
    runs = [
        {"task": "rte", "lr": lr, "epochs": epochs, "seed": seed, "metrics": {"accuracy": value, "loss": 1.0}}
        for (lr, epochs), pair in values.items()
        for seed, value in enumerate(pair)
    ]
    assert glue.best_mean("rte", runs) == pytest.approx(80)
    assert glue.best_mean("cola", runs) is None


def test_the_seed_is_what_differs() -> None:
    settings = {"model": "student", "root": None, "batch_size": 8, "max_length": 128, "precision": "32-true"}
    run = {"task": "rte", "lr": 1e-2, "epochs": 2, "seed": 0}
    first, again = (glue.fine_tune(run, settings, "cpu") for _ in range(2))
    assert first == again != glue.fine_tune({**run, "seed": 1}, settings, "cpu")


def test_results_of_other_weights_or_settings_are_refused(tmp_path: Path) -> None:
    glue.main([*WORDS, "--tasks", "rte", "--results", "r.json"])
    with pytest.raises(ValueError, match=r"r.json holds runs of .*give another --results"):
        glue.main([*WORDS, "--tasks", "rte", "--results", "r.json", "--batch_size", "8"])
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.safetensors").write_bytes(b"new")
    with pytest.raises(ValueError, match="give another --results"):
        glue.main([*WORDS, "--tasks", "rte", "--results", "r.json"])


@pytest.mark.parametrize(
    ("words", "named"),
    [(["--tasks", "sst3"], "sst3"), (["--epochs", "0"], "--epochs 0 must be at least 1"), (["--lr", "x"], "--lr")],
)
def test_bad_words(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        glue.main(["--model", "student", *words])
    assert named in capsys.readouterr().err
