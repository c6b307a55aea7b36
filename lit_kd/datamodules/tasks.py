"""Inputs of a task: for a teacher, who writes training data from them, and for a test (arXiv:2410.18588)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lit_kd.checks import check_choice, check_share, check_whole_or_none
from lit_kd.datamodules.loading import ResumableLoader, ShardSampler
from lit_kd.datamodules.problems import ColumnSet, Part, ProblemDataModule
from lit_kd.datamodules.text import Split, TextDataModule, TextSet
from lit_kd.language.chat import Message
from lit_kd.language.filters import contaminated, near_duplicates
from lit_kd.language.records import fingerprint, numbered_lines
from lit_kd.language.tasks import Task, read_task


@dataclass(frozen=True)
class Input:
    """A row of the data as a task.

    Attributes:
        chat: System message and first user message, as the student sees them; of a test all but the last answer.
        following: Further user messages of a conversation.
        gold: The right answer, if there is one.
        text: What makes it alike to others: the values at the places, or the user messages.
        reason: Why it can't be asked; None: it can.
    """

    chat: list[Message]
    following: list[str]
    gold: str | None
    text: str
    reason: str | None = None


class TaskDataModule(TextDataModule):
    """Examples of a task, to ``predict`` (a teacher writes the answers) and to ``test``; there is nothing to fit.

    Batches hold lists: ``prompt`` (the chat with the mode's system message), ``plain`` (the student's chat), ``gold``
    (None where there is none), in prediction also ``following`` (further user messages of a conversation) and
    ``reason``, and ``index`` int64 (B,), the position of the row in its file.

    An input that repeats an earlier one, shares a sentence with the evaluation set, or whose roles do not alternate is
    not left out of the batches: its ``reason`` says what is wrong, and it is not asked. So this is settled once, the
    same on all devices and after a kill, and a report can count it.

    Attributes:
        task: The task.
        mode: Name of its mode.
        kind: Of the answers, for the metrics of a test; likewise `labels`.
    """

    def __init__(
        self,
        *,
        task: str,
        mode: str = "plain",
        root: str | Path | None = None,
        problems: ProblemDataModule | None = None,
        columns: dict[str, str] | None = None,
        words: int | None = None,
        predict_on: Part = "train",
        limit: int | None = None,
        duplicates: float | None = 0.9,
        evaluation: str | list[str] | None = None,
        eval_batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        """Check and keep the arguments; rows are read in `setup`.

        Args:
            task: Name of a task of ours, or path of a YAML file, see :class:`lit_kd.language.tasks.Task`.
            mode: Whose system message ``prompt`` has: "plain" is the student's own. `lit-kd test` scores replies as
                they stand; those in JSON are read by ``python -m lit_kd.synthetic``.
            root: Folder of `train.jsonl` and `test.jsonl`.
            problems: A data module whose problems are taken, with the columns `question` and `answer`; without it and
                `root` the examples of the task come by `datasets`.
            columns: Columns of the data where they differ from the task's, such as {"gold": "target"}.
            words: Number that the prompts speak of, in the place of the task's.
            predict_on: "train" or "test".
            limit: Predict and test the first rows only.
            duplicates: Similarity from which an input repeats an earlier one, see
                :func:`lit_kd.language.filters.near_duplicates`; None: all are asked.
            evaluation: What inputs must share no sentence with: "test" (that part of the data), a JSONL file with the
                columns of the task, or texts; see :func:`lit_kd.language.filters.contaminated`.
            eval_batch_size: Rows a step and device.
            num_workers: Loader processes.

        Raises:
            ValueError: An argument is out of range, the task or mode is unknown; in `setup`, a row lacks a column, a
                conversation has no system message, a test row no gold answer, or all rows are contaminated.
            FileNotFoundError: In `setup`, a file is missing.
        """
        root = None if root is None else str(root)
        super().__init__(tokenizer="", eval_batch_size=eval_batch_size, num_workers=num_workers)
        if root is not None and problems is not None:
            raise ValueError(f"root={root!r} and problems={type(problems).__name__}: leave one of them out.")
        check_choice(("train", "test"), predict_on=predict_on)
        check_whole_or_none(limit=limit, words=words)
        if duplicates is not None:
            check_share("(0, 1]", duplicates=duplicates)
        own = read_task(task)
        taken = {"question": "question", "gold": "answer"} if problems is not None else {}
        own = replace(own, columns={**own.columns, **taken, **(columns or {})}, words=words or own.words)
        self.task: Task = own
        self.mode = mode
        self.task.mode(mode)
        self.kind, self.labels = own.metric, list(own.labels)
        self.root, self.module, self.predict_on, self.limit = root, problems, predict_on, limit
        self.duplicates, self.evaluation = duplicates, evaluation

    def describe(self) -> dict[str, Any]:
        """What decides on the prompts: the task's words and the inputs, as fingerprints."""
        source = self.module.describe() if self.module is not None else self.root or dict(self.task.hub)
        filters = {"duplicates": self.duplicates, "evaluation": fingerprint(self._evaluation_texts())}
        return {
            "class": type(self).__name__,
            "task": self.task.name,
            "mode": self.mode,
            "prompts": fingerprint(asdict(self.task)),
            "source": source,
            "inputs": fingerprint(self.rows(self.predict_on)),
            **filters,
        }

    def rows(self, part: Part) -> list[dict[str, Any]]:
        """All rows of a part, as they are in the data."""
        if self.module is not None:
            return [{"question": one.question, "answer": one.gold} for one in self.module.problems(part)]
        if self.root is not None:
            return read_rows(Path(self.root) / f"{part}.jsonl")
        if part not in self.task.hub:
            raise ValueError(f"The task {self.task.name!r} has no examples for {part}: give root, a folder of JSONL.")
        from datasets import load_dataset

        found = load_dataset(self.task.hub["name"], self.task.hub.get("config"), split=self.task.hub[part])
        gold = self.task.columns.get("gold", "")
        names = getattr(found.features.get(gold), "int2str", str)  # a class label's number by its name
        return [{**row, gold: names(row[gold])} if gold in row else dict(row) for row in found]

    def load(self, split: Split) -> list[TextSet]:
        """Read the rows of "predict" or "test"."""
        if split not in ("predict", "test"):
            raise ValueError(f"TaskDataModule has prompts to predict and to test, and nothing for {split}.")
        part: Part = self.predict_on if split == "predict" else "test"
        inputs = self.inputs(part, answered=split == "test")[: self.limit]
        columns: dict[str, list[Any]] = {
            "prompt": [self.task.told(self.mode, one.chat) for one in inputs],
            "plain": [one.chat for one in inputs],
            "gold": [one.gold for one in inputs],
        }
        if split == "predict":
            columns["following"] = [one.following for one in inputs]
            columns["reason"] = self.reasons(inputs)
        elif None in columns["gold"]:
            number = columns["gold"].index(None)
            raise ValueError(f"Test row {number} has no gold answer: name its column by columns={{'gold': name}}.")
        return [ColumnSet(columns, torch.arange(len(inputs)))]

    def inputs(self, part: Part, answered: bool) -> list[Input]:
        """The rows as inputs; with `answered` conversations end before their last answer, which is the gold one."""
        found = []
        for number, row in enumerate(self.rows(part)):
            try:
                if self.task.conversation:
                    found.append(conversation(row, self.task.columns["messages"], answered))
                else:
                    text = "\n".join(self.task.values(row).values())
                    found.append(Input(self.task.plain(row), [], self.task.gold(row), text))
            except ValueError as error:
                raise ValueError(f"Row {number} of {self.root or self.task.name} ({part}): {error}.") from error
        if not found:
            raise ValueError(f"{self.root or self.task.name} has no row to {part}.")
        return found

    def reasons(self, inputs: Sequence[Input]) -> list[str | None]:
        """Why inputs are not asked.

        Raises:
            ValueError: all share a sentence with the evaluation set.
        """
        texts = [one.text for one in inputs]
        repeated: list[int | None] = [None] * len(inputs)
        if self.duplicates is not None:
            repeated = near_duplicates(texts, self.duplicates, groups=[one.chat[0]["content"] for one in inputs])
        seen = contaminated(texts, self._evaluation_texts())
        if None not in seen:
            raise ValueError(
                f"All {len(inputs)} inputs of the task {self.task.name!r} are in the evaluation set: give other data "
                "or another evaluation."
            )
        reasons = []
        for one, earlier, asked in zip(inputs, repeated, seen, strict=True):
            alike = None if earlier is None else f"near-duplicate: of {earlier}"
            reasons.append(one.reason or alike if asked is None else f"contaminated: evaluation {asked}")
        return reasons

    def test_dataloader(self) -> list[ResumableLoader]:
        """Each row once, on one device in the order of the files."""
        return [self._loader(t, ShardSampler(t.index, self.eval_batch_size)) for t in self._sets("test")]

    def _evaluation_texts(self) -> list[str]:
        if not isinstance(self.evaluation, str):
            return list(self.evaluation or [])
        rows = self.rows("test") if self.evaluation == "test" else read_rows(Path(self.evaluation))
        try:
            if self.task.conversation:
                return [conversation(row, self.task.columns["messages"], False).text for row in rows]
            return ["\n".join(self.task.values(row).values()) for row in rows]
        except ValueError as error:
            raise ValueError(f"evaluation={self.evaluation!r}: {error}.") from error


def conversation(row: Mapping[str, Any], column: str, answered: bool) -> Input:
    """A chat of several turns as an input.

    Raises:
        ValueError: it has no messages, or none of the system in front.
    """
    messages = row.get(column)
    if not isinstance(messages, list) or not all(isinstance(one, dict) and "role" in one for one in messages):
        raise ValueError(f"its column {column!r} must be a list of messages with role and content")
    if not messages or messages[0]["role"] != "system":
        raise ValueError("it has no system message: put one in front, as every training row keeps its own")
    users = [str(one.get("content", "")) for one in messages if one["role"] == "user"]
    alternating = all(one["role"] == ("user", "assistant")[i % 2] for i, one in enumerate(messages[1:]))
    reason = None if alternating and users else "role format"
    chat = [{"role": str(one["role"]), "content": str(one.get("content", ""))} for one in messages]
    gold = None
    if answered and chat[-1]["role"] == "assistant":
        gold = chat.pop()["content"]
    return Input(chat if answered else chat[:2], users[1:], gold, "\n".join(users), reason)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file.

    Raises:
        ValueError: a line is no object.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give JSON lines, one row each.")
    rows = []
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, is not an object with columns.")
        rows.append(row)
    return rows
