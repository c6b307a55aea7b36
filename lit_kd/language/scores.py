"""What all metrics of answers share: a row of numbers for each question, over all processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_kd.intervals import bootstrap_interval, wilson_interval
from lit_kd.language.engines.sampling import Completion

Gold = str | Sequence[str]  # the right answer, or references


class AnswerMetric(Metric, ABC):
    """Numbers of the answers to questions, several answers each.

    ``compute`` gives the mean over questions of each column, and of the first one a 95 % interval, ``<name>_low`` and
    ``<name>_high``: Wilson's for the shares of one answer a question, else a bootstrap over the questions. ``finished``
    is the share of answers that ended by themselves, ``tokens`` their mean length, ``problems`` the number of
    questions. Rows are gathered, never averaged device by device: where each question comes once over all devices, as
    this project's data modules give them, it counts once.

    Subclasses name their columns and implement ``score``. A column may be NaN for a question to which it does not
    apply: the mean is over the others.

    Args:
        samples: answers of each question, n.
    """

    full_state_update = False
    columns: ClassVar[tuple[str, ...]]
    proportions: ClassVar[bool] = True  # the first column is a share of right answers

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.rows: list[Tensor]
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    @abstractmethod
    def score(self, answer: Completion, gold: Any) -> Sequence[float]:
        """The columns of one answer, all but ``finished`` and ``tokens``."""

    def update(self, answers: Sequence[Sequence[Completion]], gold: Sequence[Gold]) -> None:
        """Take n answers to each question, and its gold.

        Raises:
            ValueError: another number of answers to a question; see the class for what gold must be.
        """
        for of_one in answers:
            if len(of_one) != self.samples:
                raise ValueError(f"A question has {len(of_one)} answers instead of samples={self.samples}.")
        rows = [
            [[*self.score(answer, one), answer.finish_reason == "stop", answer.completion_tokens] for answer in of_one]
            for of_one, one in zip(answers, gold, strict=True)
        ]
        self.rows.append(torch.tensor(rows, dtype=torch.float64).to(self.device))

    def each(self) -> dict[str, Tensor]:
        """Each column of each answer, float64 (questions, n)."""
        columns = dim_zero_cat(self.rows).cpu().unbind(2)
        return dict(zip((*self.columns, "finished", "tokens"), columns, strict=True))

    def totals(self) -> dict[str, Tensor]:
        """Each column's sum over the answers to a question, float64 (questions,)."""
        return {name: column.sum(1) for name, column in self.each().items()}

    def compute(self) -> dict[str, float]:
        """The numbers by name."""
        totals = self.totals()
        numbers = {name: float(column.nanmean()) / self.samples for name, column in totals.items()}
        first, count = totals[self.columns[0]], len(totals["tokens"])
        if self.proportions and self.samples == 1:
            low, high = wilson_interval(int(first.sum()), count)
        else:
            low, high = bootstrap_interval(first / self.samples)
        return {
            **numbers,
            f"{self.columns[0]}_low": low,
            f"{self.columns[0]}_high": high,
            "problems": float(count),
        }
