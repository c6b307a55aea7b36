"""Answers of a model to problems, written to files."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lit_kd.language.accuracy import parsed
from lit_kd.language.answers import grade
from lit_kd.language.engines import Completion, Sampling
from lit_kd.language.records import Records, Row
from lit_kd.methods.language import LanguageModel
from lit_kd.models.fingerprint import weights_fingerprint
from lit_kd.models.text import TextBatch

ROLLOUTS = Sampling(temperature=0.8, top_k=50, samples=4)  # as published


class Rollouts(LanguageModel):
    """``predict`` writes ``sampling.samples`` answers to each problem into ``folder``.

    A row holds the problem's ``index``, ``question``, ``gold`` and ``prompt``, and of each answer the token ids as they
    were drawn, text, finish reason, the extracted answer and whether it is right. Every device appends to a file of its
    own; after a kill the same command goes on, and the files are those of one run: draws are a function of (seed,
    problem, sample), and a batch of which a part was written is drawn as a whole again. Another model, prompt or
    setting is refused.

    Args:
        folder: for ``manifest.json`` and ``rows-<rank>.jsonl``, see :mod:`lit_kd.language.records`.
        sampling: how answers are drawn.
        **settings: see :class:`LanguageModel`.
    """

    def __init__(self, folder: str, sampling: Sampling = ROLLOUTS, **settings: Any) -> None:
        super().__init__(sampling=sampling, **settings)
        self.folder = folder

    def manifest(self) -> dict[str, Any]:
        """What decides on the rows."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        engine = self.engine.describe()
        if self.student is not None:
            engine["weights"] = weights_fingerprint(self.network)
        return {
            "stage": type(self).__name__,
            "engine": engine,
            "sampling": asdict(self.sampling),
            "kind": self.kind,
            "data": data.describe(),
        }

    def on_predict_start(self) -> None:
        """Open the folder; every device sees what is done before the first of them writes."""
        self.records = Records(self.folder, self.manifest(), self.global_rank)
        self.trainer.strategy.barrier()

    def predict_step(self, batch: TextBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Answer and write, unless all of the batch is done."""
        if not set(batch["index"].tolist()) <= self.records.done:
            self.records.append(self.rows(batch))

    def rows(self, batch: TextBatch) -> list[Row]:
        """A row for each problem, but for those that a server failed to answer: the next start asks them again."""
        return [
            {**problem, "answers": [answer_row(answer, problem["gold"], self.kind) for answer in answers]}
            for problem, answers in zip(problems(batch), self.answers(batch), strict=True)
            if all(answer.finish_reason != "error" for answer in answers)
        ]


def problems(batch: TextBatch) -> list[Row]:
    """The batch's problems: all that is no tensor, and the index, row by row."""
    columns = {name: values for name, values in batch.items() if isinstance(values, list)}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [{"index": index, **row} for index, row in zip(batch["index"].tolist(), rows, strict=True)]


def answer_row(answer: Completion, gold: str, kind: Any) -> Row:
    """An answer as it is written."""
    found = grade(answer.text, gold, kind)
    return {
        **asdict(answer),
        "answer": found.answer.text if parsed(found.answer, kind) else None,
        "right": found.strict,
    }
