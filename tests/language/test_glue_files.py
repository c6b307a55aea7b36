"""GLUE's tsv files: their quirks, and the numbers of rows and labels of the real ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datamodules.text_files import LABELS, TSV
from datasets import ClassLabel, Dataset, Features, Value
from shared_data import DATA

from lit_kd.language.glue import GLUE_TASKS, glue_rows, glue_task, read_glue

needs_data = pytest.mark.skipif(not (DATA / "glue").is_dir(), reason="no real data (LITKD_DATA)")


def read(folder: Path, task: str, text: str | bytes, labelled: bool = True) -> Any:
    file = folder / "rows.tsv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_glue(file, glue_task(task), labelled)


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_every_task(task: str, tmp_path: Path) -> None:
    rows = read(tmp_path, task, TSV[task])
    assert rows.labels.tolist() == LABELS[task]
    assert rows.labels.dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert [len(texts) for texts in rows.texts] == [2] * len(GLUE_TASKS[task].columns)


def test_mnli_has_12_16_or_10_columns(tmp_path: Path) -> None:
    """In the official dev sets there are five labels of annotators before the gold one, in the test sets none."""
    names = ["index", "promptID", "pairID", "genre", "s1b", "s2b", "s1p", "s2p", "sentence1", "sentence2"]
    row = ["0", "1", "1e", "g", "(", "(", "(", "(", "It is.", "It was."]
    for labels in ([], ["label1"], [f"label{i}" for i in range(1, 6)]):
        extra = ["entailment"] * len(labels) + (["contradiction"] if labels else [])
        header = [*names, *labels, *(["gold_label"] if labels else [])]
        rows = read(tmp_path, "mnli", "\t".join(header) + "\n" + "\t".join([*row, *extra]) + "\n", bool(labels))
        assert rows.texts == (["It is."], ["It was."])
        assert rows.labels is None or rows.labels.tolist() == [2]


def test_quotes_and_other_line_ends_are_characters(tmp_path: Path) -> None:
    text = 'sentence\tlabel\n"open\t1\na\x85b\u2028c\x0bd\t0\n'
    rows = read(tmp_path, "sst2", text)
    assert rows.texts == (['"open', "a\x85b\u2028c\x0bd"],)


def test_microsofts_mrpc(tmp_path: Path) -> None:
    """It begins with a byte order mark, and its lines end with a carriage return."""
    rows = read(tmp_path, "mrpc", b"\xef\xbb\xbf" + TSV["mrpc"].replace("\n", "\r\n").encode())
    assert rows.texts[1] == ["He did run .", "B ."] and rows.labels.tolist() == [1, 0]


def test_test_files_without_labels(tmp_path: Path) -> None:
    assert read(tmp_path, "cola", "index\tsentence\n0\tIt is.\n", False).texts == (["It is."],)
    mrpc = "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA.\tB.\n"
    rows = read(tmp_path, "mrpc", mrpc, False)
    assert rows.texts == (["A."], ["B."]) and rows.labels is None


def test_rows_without_all_cells_are_left_out(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="1 rows with too few cells are left out"):
        rows = read(tmp_path, "qqp", TSV["qqp"] + "7\t8\t9\tWhat is\n")
    assert rows.labels.tolist() == LABELS["qqp"]


@pytest.mark.parametrize(
    ("task", "text", "sentence"),
    [
        ("rte", "", "is empty"),
        ("rte", TSV["sst2"], "has no column 'sentence1', only sentence, label: it is no file of rte"),
        ("sst2", "sentence\tlabel\na\tyes\n", "not one of 0, 1, negative, positive of sst2: 'yes'"),
        (
            "stsb",
            TSV["stsb"].replace("5.000", "five"),
            "not a number of stsb: could not convert string to float: 'five'",
        ),
    ],
)
def test_bad_files(task: str, text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, task, text)


def in_datasets(task: str, names: tuple[str, ...]) -> Dataset:
    known = glue_task(task)
    label = ClassLabel(names=list(names)) if names else Value("float32")
    features = Features({**{name: Value("string") for name in known.columns}, "label": label})
    rows = {**{name: ["a", "b"] for name in known.columns}, "label": [1, 0]}
    return Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_datasets_hold_the_same(task: str) -> None:
    known = glue_task(task)
    rows = glue_rows(in_datasets(task, known.labels), known)
    assert rows.texts == (["a", "b"],) * len(known.columns) and rows.labels.tolist() == [1, 0]
    assert rows.labels.dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert glue_rows(in_datasets(task, known.labels), known, labelled=False).labels is None


def test_classes_in_another_order_are_refused() -> None:
    data = in_datasets("mnli", ("contradiction", "neutral", "entailment"))
    with pytest.raises(ValueError, match=r"number the classes of mnli as \('contradiction'"):
        glue_rows(data, glue_task("mnli"))


# Rows and labels of each class of the real files: data/README.md where it says them, else counted by cut and uniq.
REAL = {
    ("cola", "train.tsv"): (8551, [2528, 6023]),
    ("cola", "dev.tsv"): (1043, [322, 721]),
    ("sst2", "train.tsv"): (67349, [29780, 37569]),
    ("sst2", "dev.tsv"): (872, [428, 444]),
    ("mrpc", "train.tsv"): (3668, [1194, 2474]),
    ("mrpc", "dev.tsv"): (408, [129, 279]),
    ("mrpc", "dev_official_glue.tsv"): (408, [129, 279]),
    ("mrpc", "msr_paraphrase_test.txt"): (1725, [578, 1147]),
    ("qnli", "train.tsv"): (320, [160, 160]),
    ("qnli", "dev.tsv"): (5463, [2702, 2761]),
    ("qqp", "train.tsv"): (4000, [2495, 1505]),
    ("qqp", "dev.tsv"): (2000, [1253, 747]),
    ("rte", "train.tsv"): (2490, [1249, 1241]),
    ("rte", "dev.tsv"): (277, [146, 131]),
    ("wnli", "train.tsv"): (635, [323, 312]),
    ("wnli", "dev.tsv"): (71, [40, 31]),
    ("mnli", "train.tsv"): (240, [80, 80, 80]),
    ("mnli", "dev_matched.tsv"): (240, [80, 80, 80]),
    ("stsb", "train.tsv"): (5749, []),
    ("stsb", "dev.tsv"): (1500, []),
}


@needs_data
@pytest.mark.parametrize(("task", "file"), REAL)
def test_real_files(task: str, file: str, recwarn: pytest.WarningsRecorder) -> None:
    count, per_class = REAL[task, file]
    rows = read_glue(DATA / "glue" / glue_task(task).folder / file, glue_task(task))
    assert [len(texts) for texts in rows.texts] == [count] * len(glue_task(task).columns)
    assert all(text for texts in rows.texts for text in texts)
    assert not per_class or rows.labels.bincount().tolist() == per_class  # type: ignore[union-attr]
    if task == "stsb":
        assert rows.labels.min() == 0 and rows.labels.max() == 5  # type: ignore[union-attr]
    assert not [warning for warning in recwarn if "too few cells" in str(warning.message)]


@needs_data
@pytest.mark.parametrize(("task", "count"), [("cola", 1063), ("rte", 3000), ("wnli", 146), ("stsb", 1379)])
def test_real_test_files(task: str, count: int) -> None:
    rows = read_glue(DATA / "glue" / glue_task(task).folder / "test.tsv", glue_task(task), labelled=False)
    assert len(rows.texts[0]) == count and rows.labels is None
