"""Inputs of tasks: what a teacher and a student are asked, and what is not asked at all."""

from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from synthesis_toy import own_task, write_rows

from lit_kd.datamodules import ArithmeticDataModule, TaskDataModule

NLI = [
    {"premise": "Ann sings and Bob dances.", "hypothesis": "Bob dances.", "label": "entailment"},
    {"premise": "Ann sings or Bob dances.", "hypothesis": "Bob dances.", "label": "neutral"},
]


def batch(data: TaskDataModule, stage: str = "predict") -> dict[str, Any]:
    data.setup(stage)
    loader = data.predict_dataloader() if stage == "predict" else data.test_dataloader()
    (found,) = [found for each in loader for found in each]
    return found


def test_prompts_of_teacher_and_student(tmp_path: Path) -> None:
    root = write_rows(tmp_path / "train.jsonl", NLI)
    found = batch(TaskDataModule(task="nli", mode="cot", root=root))
    assert found["index"].tolist() == [0, 1] and found["gold"] == ["entailment", "neutral"]
    for teacher, student in zip(found["prompt"], found["plain"], strict=True):
        assert "JSON" in teacher[0]["content"] and "JSON" not in student[0]["content"]
        assert teacher[1:] == student[1:]
    assert found["following"] == [[], []] and found["reason"] == [None, None]
    write_rows(tmp_path / "test.jsonl", NLI[:1])
    tested = batch(TaskDataModule(task="nli", root=root), "test")
    assert tested["prompt"] == tested["plain"] == [found["plain"][0]]
    assert "JSON" in batch(TaskDataModule(task="nli", mode="cot", root=root), "test")["prompt"][0][0]["content"]
    assert TaskDataModule(task="nli", root=root).kind == "label"


def test_columns_and_words(tmp_path: Path) -> None:
    root = write_rows(tmp_path / "train.jsonl", [{"text": "A long story.", "short": "Story."}])
    columns = {"article": "text", "gold": "short"}
    found = batch(TaskDataModule(task="summarization", mode="cod", root=root, columns=columns, words=40))
    assert found["gold"] == ["Story."] and "at most 40 words" in found["prompt"][0][0]["content"]
    with pytest.raises(ValueError, match="Row 0 of .*: it has no column 'article' but text, short: say by columns"):
        TaskDataModule(task="summarization", root=root).setup("predict")


def test_problems_of_another_data_module() -> None:
    problems = ArithmeticDataModule(tokenizer="", samples=5, test_samples=3)
    data = TaskDataModule(task="math", mode="cot", problems=problems, duplicates=None)
    found = batch(data)
    assert found["gold"] == [problem.gold for problem in problems.problems("train")]
    assert problems.problems("train")[0].question in found["plain"][0][1]["content"]
    assert len(batch(data, "test")["gold"]) == 3
    assert data.describe()["source"]["class"] == "ArithmeticDataModule"


def test_examples_by_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["neutral", "entailment", "contradiction"]
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=names)})
    asked: list[Any] = []

    def load(*args: Any, **settings: Any) -> Dataset:
        asked.append((args, settings))
        return Dataset.from_list([{**row, "label": names.index(row["label"])} for row in NLI], features=features)

    monkeypatch.setattr("datasets.load_dataset", load)
    found = batch(TaskDataModule(task="nli"))
    assert found["gold"] == ["entailment", "neutral"]
    assert asked[0] == (("cestwc/conjnli", None), {"split": "adversarial[:512]"})


def test_what_is_not_asked(tmp_path: Path) -> None:
    def row(text: str) -> dict[str, Any]:
        return {"question": text, "answer": "1"}

    known = "How many of the 12 eggs that Tom bought on Monday morning at the market are left?"
    texts = ["one and one", f"Well: {known}", "ONE and one!", "two and two"]
    root = write_rows(tmp_path / "train.jsonl", [row(text) for text in texts])
    write_rows(tmp_path / "evaluation.jsonl", [row("x"), row(known)])
    task, file = own_task(tmp_path), str(tmp_path / "evaluation.jsonl")
    for evaluation in (file, ["x", known]):
        data = TaskDataModule(task=task, root=root, evaluation=evaluation)
        assert batch(data)["reason"] == [None, "contaminated: evaluation 1", "near-duplicate: of 0", None]
    assert batch(TaskDataModule(task=task, root=root, duplicates=None))["reason"] == [None] * 4
    with pytest.raises(ValueError, match="All 4 inputs of the task 'sums' are in the evaluation set"):
        TaskDataModule(task=task, root=root, evaluation=texts).setup("predict")
    whole = TaskDataModule(task=task, root=root, evaluation=file)
    part = TaskDataModule(task=task, root=root, evaluation=file, limit=3, eval_batch_size=2)
    assert whole.describe() == part.describe()
    assert whole.describe() != TaskDataModule(task=task, root=root).describe()
    changed = TaskDataModule(task=own_task(tmp_path, system="Other."), root=root, evaluation=file)
    assert whole.describe()["prompts"] != changed.describe()["prompts"]


def chat(*turns: str, system: str | None = "Be kind.") -> dict[str, Any]:
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system is not None else messages}


def test_conversations(tmp_path: Path) -> None:
    wrong = chat("a", "b")
    wrong["messages"].append({"role": "assistant", "content": "c"})
    rows = [chat("hi", "hello", "bye", "see you"), chat("hi", "hello", "bye", system="Be curt."), wrong]
    root = write_rows(tmp_path / "train.jsonl", rows)
    found = batch(TaskDataModule(task="conversation", root=root))
    assert [message["content"] for message in found["plain"][0]] == ["Be kind.", "hi"]
    assert found["following"] == [["bye"], ["bye"], []] and found["gold"] == [None] * 3
    assert found["reason"] == [None, None, "role format"]  # equal words behind another system message are no repetition
    write_rows(tmp_path / "test.jsonl", rows[:1])
    tested = batch(TaskDataModule(task="conversation", root=root), "test")
    assert tested["gold"] == ["see you"] and [m["content"] for m in tested["prompt"][0]][1:] == ["hi", "hello", "bye"]
    write_rows(tmp_path / "train.jsonl", [chat("hi", "hello", system=None)])
    with pytest.raises(ValueError, match="Row 0 of .* it has no system message: put one in front"):
        TaskDataModule(task="conversation", root=root).setup("predict")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"task": "poetry"}, "task='poetry' is unknown: take conversation, math"),
        ({"mode": "cod"}, "mode='cod' is none of the task 'math': take plain, cot, steps"),
        ({"root": "x", "problems": ArithmeticDataModule(tokenizer="")}, "root='x' and problems=ArithmeticDataModule"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TaskDataModule(**{"task": "math", **settings})


def test_bad_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing for train"):
        TaskDataModule(task="math", root=str(tmp_path)).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl does not exist"):
        TaskDataModule(task="math", root=str(tmp_path)).setup("predict")
    with pytest.raises(ValueError, match="The task 'conversation' has no examples for train: give root"):
        TaskDataModule(task="conversation").setup("predict")
    (tmp_path / "train.jsonl").write_text('{"question": "x"}\n[1]\n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2, is not an object"):
        TaskDataModule(task="math", root=str(tmp_path)).setup("predict")
    (tmp_path / "train.jsonl").write_text('{"question": "x"}\n{\n')
    with pytest.raises(ValueError, match=r"train\.jsonl, line 2, is no JSON"):
        TaskDataModule(task="math", root=str(tmp_path)).setup("predict")
    write_rows(tmp_path / "test.jsonl", [{"question": "x"}])
    with pytest.raises(ValueError, match="Test row 0 has no gold answer"):
        TaskDataModule(task="math", root=str(tmp_path)).setup("test")
    write_rows(tmp_path / "train.jsonl", [{"question": "x"}])
    write_rows(tmp_path / "evaluation.jsonl", [chat("hi")])
    other = TaskDataModule(task="math", root=str(tmp_path), evaluation=str(tmp_path / "evaluation.jsonl"))
    with pytest.raises(ValueError, match="evaluation=.*: it has no column 'question' but messages"):
        other.setup("predict")
