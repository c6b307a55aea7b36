"""The nine tasks of GLUE (Wang et al., arXiv:1804.07461): names, classes, metrics, files."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        name: As `datasets` names it: `load_dataset("nyu-mll/glue", name)`.
        folder: Of GLUE's tsv files.
        labels: Names of the classes in the order of their numbers, as in `datasets`; empty for a regression.
        metrics: What is reported, from `accuracy`, `f1`, `matthews`, `pearson`, `spearman`; the first is the one in
            the MiniLM paper's tables.
        columns: Of the one or two texts in `datasets`, where the label is always `label`.
        tsv_columns: Of the one or two texts and the label in GLUE's tsv files.
        header: Column names of tsv files without a header line.
        parts: Ends of the names of evaluation files and splits; validation and test have a loader for each.
    """

    name: str
    folder: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    tsv_columns: tuple[str, ...]
    header: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("",)

    @property
    def num_labels(self) -> int:
        """Outputs of a network for the task: 1 for a regression."""
        return max(1, len(self.labels))


_PAIR = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")
_MRPC = ("#1 String", "#2 String", "Quality")
_COLA = ("source", "label", "star", "sentence")  # train.tsv and dev.tsv; test.tsv has a header line
_MNLI = ("_matched", "_mismatched")

GLUE_TASKS = {
    task.name: task
    for task in (
        GlueTask("cola", "CoLA", ("unacceptable", "acceptable"), ("matthews",),
                 ("sentence",), ("sentence", "label"), header=_COLA),
        GlueTask("sst2", "SST-2", ("negative", "positive"), ("accuracy",),
                 ("sentence",), ("sentence", "label")),
        GlueTask("mrpc", "MRPC", ("not_equivalent", "equivalent"), ("accuracy", "f1"), _PAIR, _MRPC),
        GlueTask("qqp", "QQP", ("not_duplicate", "duplicate"), ("accuracy", "f1"),
                 _QUESTIONS, (*_QUESTIONS, "is_duplicate")),
        GlueTask("stsb", "STS-B", (), ("pearson", "spearman"), _PAIR, (*_PAIR, "score")),
        GlueTask("mnli", "MNLI", ("entailment", "neutral", "contradiction"), ("accuracy",),
                 ("premise", "hypothesis"), (*_PAIR, "gold_label"), parts=_MNLI),
        GlueTask("qnli", "QNLI", ("entailment", "not_entailment"), ("accuracy",),
                 ("question", "sentence"), ("question", "sentence", "label")),
        GlueTask("rte", "RTE", ("entailment", "not_entailment"), ("accuracy",), _PAIR, (*_PAIR, "label")),
        GlueTask("wnli", "WNLI", ("not_entailment", "entailment"), ("accuracy",), _PAIR, (*_PAIR, "label")),
    )
}  # fmt: skip


@dataclass(frozen=True)
class GlueRows:
    """The rows of a file.

    Attributes:
        texts: The first and, for pairs, the second texts.
        labels: int64 (N,) class numbers, or float32 (N,) scores of a regression; None: the file has none.
    """

    texts: tuple[list[str], ...]
    labels: Tensor | None


def glue_task(name: str) -> GlueTask:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in GLUE_TASKS:
        raise ValueError(f"task={name!r} is no task of GLUE: take one of {', '.join(GLUE_TASKS)}.")
    return GLUE_TASKS[name]


def read_glue(path: str | Path, task: GlueTask, labelled: bool = True) -> GlueRows:
    r"""Read a tsv file of GLUE: lines end with \n, cells with a tab, and a quotation mark is like any character.

    Columns are found by name, so that MNLI's files of 10, 12 and 16 columns and MRPC's of 5 are one case. Rows with too
    few cells, of which the official QQP has some, are left out with a warning, as `datasets` does.

    Args:
        path: The file.
        task: Its task.
        labelled: Whether to read labels; test files have none.

    Raises:
        ValueError: A column is missing, or a label is none of the task's.
    """
    # The bytes are split by hand: csv sees quotes and str.splitlines more ends of lines than these files have. MRPC as
    # Microsoft offers it starts with a byte order mark and has \r\n.
    lines = [line.removesuffix("\r") for line in Path(path).read_bytes().decode("utf-8-sig").split("\n")]
    cells = [line.split("\t") for line in lines if line]
    if not cells:
        raise ValueError(f"{path} is empty.")
    wanted = task.tsv_columns if labelled else task.tsv_columns[:-1]
    header = cells.pop(0) if not task.header or task.tsv_columns[0] in cells[0] else list(task.header)
    absent = [name for name in wanted if name not in header]
    if absent:
        raise ValueError(f"{path} has no column {absent[0]!r}, only {', '.join(header)}: it is no file of {task.name}.")
    rows = [row for row in cells if len(row) >= len(header)]
    if len(rows) < len(cells):
        warnings.warn(f"{path}: {len(cells) - len(rows)} rows with too few cells are left out.", stacklevel=2)
    columns = [[row[header.index(name)] for row in rows] for name in wanted]
    texts = tuple(columns[: len(task.columns)])
    return GlueRows(texts, label_numbers(columns[-1], task, path) if labelled else None)


def label_numbers(names: list[str], task: GlueTask, path: str | Path) -> Tensor:
    """Class numbers, int64 (N,), of labels by name or number; for a regression scores, float32 (N,).

    Raises:
        ValueError: a label is none of the task's.
    """
    numbers = {str(i): i for i in range(len(task.labels))} | {name: i for i, name in enumerate(task.labels)}
    try:
        if not task.labels:
            return torch.tensor([float(name) for name in names], dtype=torch.float32)
        return torch.tensor([numbers[name] for name in names], dtype=torch.int64)
    except (KeyError, ValueError) as error:
        expected = f"one of {', '.join(numbers)}" if numbers else "a number"
        raise ValueError(f"{path} has a label that is not {expected} of {task.name}: {error}.") from error


def glue_rows(dataset: Dataset, task: GlueTask, labelled: bool = True) -> GlueRows:
    """The rows of one split of `datasets`' GLUE.

    Raises:
        ValueError: its classes are numbered in another way than ours.
    """
    texts = tuple(list(dataset[name]) for name in task.columns)
    if not labelled:
        return GlueRows(texts, None)
    names = tuple(getattr(dataset.features["label"], "names", ()))
    if names != task.labels:
        raise ValueError(f"The data number the classes of {task.name} as {names}, not as {task.labels}: reorder them.")
    return GlueRows(texts, torch.tensor(dataset["label"][:], dtype=torch.int64 if task.labels else torch.float32))
