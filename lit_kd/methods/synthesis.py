"""Training data by a teacher: the first half of distillation through synthetic data.

Shirgaonkar, Pandey, Abay, Aktas and Aski, arXiv:2410.18588. Structure after what the same group ships; the paper's body
was not read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch.utilities import rank_zero_only

from lit_kd.checks import check_choice, check_share, check_whole, check_whole_or_none
from lit_kd.files import replacing
from lit_kd.language.engines import Completion, Sampling
from lit_kd.language.records import Row, read_records
from lit_kd.language.replies import Reply
from lit_kd.language.tasks import Target, Task
from lit_kd.methods.language import GREEDY
from lit_kd.methods.rollouts import Rollouts, problems
from lit_kd.models.text import TextBatch

# The teacher gave an answer, and it is another filter that keeps the row out.
_USABLE = {None, "wrong answer", "too short", "too long"}
_FIRST = 8  # replies without a single answer, from which on a run is ended at once


class Synthesis(Rollouts):
    """``predict`` writes training rows: a teacher, told to reason, answers what the student will be asked plainly.

    The data are :class:`lit_kd.datamodules.TaskDataModule`. The teacher sees the system message of the data's mode; the
    row has the task's own again, so that the student learns to answer the plain prompt as the teacher answered the
    elaborate one. Each assistant turn of a conversation is written anew, from left to right, behind the turns that were
    written before it.

    There is one row for each input, told by its index: ``messages`` (system, user, assistant, ...), ``reason`` (None,
    or why it must not be trained on), ``gold``, ``reply`` (the teacher's last one), ``attempts``, ``requests``,
    ``prompt_tokens`` and ``completion_tokens``. An input that a server failed to answer has none, and the next start
    asks it again. In the end ``report.json`` and ``report.md`` count what was kept, what was dropped and why, and what
    it has cost; if fewer than ``min_success`` of the replies have an answer, that is an error, and nothing is lost: the
    same command with another threshold asks nothing again.

    Args:
        folder: see :class:`Rollouts`.
        sampling: how the teacher answers; None: as the task's mode says.
        target: "answer": its reasoning is thrown away, as published; "rationale+answer": the student learns both.
        attempts: replies to an input at most: one without an answer, or with a wrong one, is drawn again.
        check_gold: an answer must be the gold one, where there is one.
        min_words: fewest words of an assistant turn.
        max_words: most of them.
        min_success: share of the inputs asked whose reply has to have an answer, right or wrong.
        **settings: see :class:`lit_kd.methods.LanguageModel`.

    Raises:
        ValueError: a number out of range; for prediction, data that are no task, a target that the task does not have;
            afterwards, too few replies with an answer.
    """

    task: Task
    mode: str

    def __init__(
        self,
        folder: str,
        sampling: Sampling | None = None,
        target: Target = "answer",
        attempts: int = 2,
        check_gold: bool = True,
        min_words: int = 1,
        max_words: int | None = None,
        min_success: float = 0.7,
        **settings: Any,
    ) -> None:
        super().__init__(folder, sampling or GREEDY, **settings)
        check_choice((1,), samples=self.sampling.samples)
        check_choice(get_args(Target), target=target)
        check_whole(attempts=attempts, min_words=min_words)
        check_whole_or_none(min_words, max_words=max_words)
        check_share(min_success=min_success)
        self.by_task = sampling is None
        self.target, self.attempts, self.check_gold = target, attempts, check_gold
        self.min_words, self.max_words, self.min_success = min_words, max_words, min_success

    def manifest(self) -> dict[str, Any]:
        """What decides on the rows."""
        own = ("target", "attempts", "check_gold", "min_words", "max_words")
        return {**super().manifest(), **{name: getattr(self, name) for name in own}}

    def on_predict_start(self) -> None:
        """Take the task from the data, and open the folder."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(getattr(data, "task", None), Task):
            raise ValueError(f"Synthesis writes the answers of a task, and {type(data).__name__} is no TaskDataModule.")
        self.task, self.mode = data.task, data.mode
        self.task.target(self.target, Reply())
        if self.by_task:
            self.sampling = Sampling(**self.task.mode(self.mode).sampling)
        super().on_predict_start()

    def predict_step(self, batch: TextBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Ask and write what is not written yet."""
        rows = self.rows([one for one in problems(batch) if one["index"] not in self.records.done])
        self.records.append(rows)
        asked = [row for row in rows if row["requests"]]
        if batch_idx == 0 and len(asked) >= _FIRST and not any(map(usable, asked)):
            raise ValueError(self.nothing_found(asked))

    def rows(self, inputs: Any) -> list[Row]:
        """A row for each input, but for those that a server failed to answer."""
        rows = [new_row(one) for one in inputs]
        for turn in range(1 + max((len(one["following"]) for one in inputs), default=0)):
            speaking = []
            for one, row in zip(inputs, rows, strict=True):
                if row["reason"] is None and turn <= len(one["following"]):
                    if turn:
                        row["messages"].append({"role": "user", "content": one["following"][turn - 1]})
                    speaking.append((row, one["prompt"][0]))
            self.answer(speaking, turn)
        return [row for row in rows if row["reason"] != "finish reason error"]

    def answer(self, left: list[tuple[Row, Any]], turn: int) -> None:
        """Add the next assistant turn to rows, behind the teacher's system message of each, or the reason why not."""
        for attempt in range(self.attempts):
            if not left:
                return
            sampling = replace(self.sampling, seed=self.sampling.seed + turn * self.attempts + attempt)
            prompts = [[system, *row["messages"][1:]] for row, system in left]
            replies = self.engine.generate(prompts, sampling, [row["index"] for row, _ in left])
            for (row, _), (completion,) in zip(left, replies, strict=True):
                text, row["reason"] = self.judge(completion, row["gold"])
                row["reply"], row["attempts"] = completion.text, attempt + 1
                row["requests"] += 1
                row["prompt_tokens"] += completion.prompt_tokens
                row["completion_tokens"] += completion.completion_tokens
                if row["reason"] is None:
                    row["messages"].append({"role": "assistant", "content": text})
            left = [(row, system) for row, system in left if row["reason"] not in (None, "finish reason error")]

    def judge(self, completion: Completion, gold: str | None) -> tuple[str, str | None]:
        """What the student is to say, and why it must not."""
        if completion.finish_reason != "stop":
            return "", f"finish reason {completion.finish_reason}"
        reply = self.task.read(self.mode, completion.text)
        if reply.answer is None:
            return "", reply.reason
        if self.target != "answer" and not reply.rationale:
            return "", "no rationale"
        text = self.task.target(self.target, reply)
        words = len(text.split())
        if self.check_gold and not self.task.right(reply.answer, gold):
            return text, "wrong answer"
        if words < self.min_words:
            return text, "too short"
        return text, "too long" if self.max_words is not None and words > self.max_words else None

    def on_predict_end(self) -> None:
        """Write the report, and see that enough replies had an answer."""
        self.trainer.strategy.barrier()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        inputs = {index for texts in data.sets["predict"] for index in texts.numbers.tolist()}
        written = any(file.stat().st_size for file in Path(self.folder).glob("rows-*.jsonl"))
        rows = [row for row in (read_records(self.folder) if written else []) if row["index"] in inputs]
        numbers = {"task": self.task.name, "mode": self.mode, "target": self.target, **summary(rows, len(inputs))}
        rank_zero_only(write_report)(self.folder, numbers)
        asked = [row for row in rows if row["requests"]]
        if asked and not any(map(usable, asked)):
            raise ValueError(self.nothing_found(asked))
        if numbers["success"] < self.min_success:
            dropped = Counter(kind(row) for row in asked if not usable(row))
            sample = next(row for row in asked if not usable(row)) if dropped else {"index": "-", "reply": ""}
            raise ValueError(
                f"Only {numbers['success']:.1%} of {numbers['asked']} inputs have a reply with an answer, fewer than "
                f"min_success={self.min_success}: {counted(dropped, numbers['unanswered'])}; the reply to input "
                f"{sample['index']} is {sample['reply'][:200]!r}. All rows and the report are in {self.folder}."
            )

    def nothing_found(self, asked: Sequence[Row]) -> str:
        """The sentence for replies none of which has an answer."""
        return (
            f"The parser {self.task.mode(self.mode).parser!r} of task {self.task.name!r}, mode {self.mode!r}, found an "
            f"answer in none of {len(asked)} replies ({counted(Counter(map(kind, asked)))}); the reply to input "
            f"{asked[0]['index']} is {asked[0]['reply'][:200]!r}."
        )


def new_row(one: Row) -> Row:
    """The row of an input that nobody has been asked yet."""
    counts = {"attempts": 0, "requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    return {
        "index": one["index"],
        "messages": [dict(message) for message in one["plain"]],
        "reason": one["reason"],
        "gold": one["gold"],
        "reply": "",
        **counts,
    }


def usable(row: Row) -> bool:
    """Whether the teacher gave an answer, be it a wrong one."""
    return row["reason"] in _USABLE


def kind(row: Row) -> str:
    """The reason without its details."""
    return str(row["reason"]).partition(":")[0]


def summary(rows: Sequence[Row], inputs: int) -> dict[str, Any]:
    """What was kept and dropped of so many inputs, and what it has cost."""
    asked = [row for row in rows if row["requests"]]
    unanswered = inputs - len(rows)
    total = len(asked) + unanswered
    dropped = Counter(kind(row) for row in rows if row["reason"] is not None)
    costs = {name: sum(row[name] for row in rows) for name in ("requests", "prompt_tokens", "completion_tokens")}
    return {
        "inputs": inputs,
        "kept": sum(row["reason"] is None for row in rows),
        "asked": total,
        "unanswered": unanswered,
        "success": sum(map(usable, asked)) / total if total else 1.0,
        "dropped": dict(sorted(dropped.items())),
        **costs,
    }


def counted(reasons: Counter[str], unanswered: int = 0) -> str:
    """Reasons with their numbers, the most frequent first."""
    parts = [f"{number} {reason}" for reason, number in reasons.most_common()]
    return ", ".join([*parts, *([f"{unanswered} unanswered"] if unanswered else [])]) or "none"


def write_report(folder: str, numbers: dict[str, Any]) -> None:
    """``report.json``, and the same as a table."""
    lines = ["| | |", "|---|---|"]
    for name, value in numbers.items():
        if isinstance(value, dict):
            lines += [f"| dropped: {reason} | {number} |" for reason, number in value.items()]
        else:
            lines.append(f"| {name.replace('_', ' ')} | {f'{value:.1%}' if isinstance(value, float) else value} |")
    for name, text in (("report.json", json.dumps(numbers, indent=2) + "\n"), ("report.md", "\n".join(lines) + "\n")):
        with replacing(Path(folder) / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
