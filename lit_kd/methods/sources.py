"""Where the sequences of a training step come from: the data, the student, or what the student wrote before.

A source gives rows of tokens in the place of the data's, or none, and then the step is taken on the data. Nothing is
left to global random states: the branch is a function of (seed, step), so that all devices and micro-batches of a step
take the same one; a sequence is a function of (seed, step, index of its prompt) and the networks, whatever the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from lit_kd.checks import check_choice, check_share, check_whole
from lit_kd.language.engines import Sampling
from lit_kd.language.engines.sampling import request_seed, uniforms

BRANCH, WRITE, PICK, REPLAY = range(4)  # what is drawn
FREE = Sampling()  # temperature 1 and no filter: the student's own distribution


@dataclass(frozen=True)
class TokenRow:
    """A prompt, what stands behind it so far, and the position of the prompt in the data."""

    index: int
    prompt: tuple[int, ...]
    completion: tuple[int, ...] = ()


@dataclass(frozen=True)
class Moment:
    """When a batch is drawn: optimizer steps so far and in all, batch of the epoch, rank of the device."""

    step: int
    steps: float
    batch: int
    rank: int


@dataclass(frozen=True)
class Writing:
    """How rows are written: at most ``max_length`` tokens with the prompt, ``share`` of the distribution the teacher's.

    ``round`` counts how often the rows were taken up again.
    """

    sampling: Sampling
    max_length: int
    step: int
    share: float = 0.0
    round: int = 0

    def room(self, row: TokenRow) -> int:
        """Tokens that a row can still get."""
        written = len(row.completion)
        return min(self.max_length - len(row.prompt), self.sampling.max_new_tokens) - written


class Writer(ABC):
    """Student and teacher, as a source sees them.

    Attributes:
        ends: tokens that end a completion.
        longest: tokens that the networks have positions for; None: any number.
    """

    ends: tuple[int, ...]
    longest: int | None

    @abstractmethod
    def write(self, rows: Sequence[TokenRow], writing: Writing) -> list[TokenRow]:
        """The rows, continued by the student to their end; each has room."""

    @abstractmethod
    def compare(
        self, rows: Sequence[TokenRow], picks: Sequence[np.ndarray] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the teacher thinks of each completion token, (B, S) each, padded on the right.

        Args:
            rows: whole rows.
            picks: a uniform for each completion token, by which the teacher draws one; None: its most probable one.

        Returns:
            KL(teacher || student), the student's tokens, the teacher's, and where there are any.
        """


class SequenceSource(ABC):
    """What gives the sequences of a training step. Its state is in the checkpoint.

    Attributes:
        writes: whether the student writes in training, which a sharded one cannot.
        needs_teacher: whether the teacher takes part in that.
        needs_validation: whether ``val/loss`` drives it.
    """

    writes = True
    needs_teacher = False
    needs_validation = False

    @abstractmethod
    def rows(self, given: Sequence[TokenRow], moment: Moment, writer: Writer) -> list[TokenRow] | None:
        """Rows in the place of the data's, or None: the data's own."""

    def check(self, batch_size: int) -> None:  # noqa: B027
        """Raise a ValueError if batches are too large for it."""

    def validated(self, loss: float) -> None:  # noqa: B027
        """Take notice of a validation: of the one before training first, then of each."""

    def numbers(self) -> dict[str, float]:
        """What to log of the last call."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What training needs to go on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take up a state."""


class FixedData(SequenceSource):
    """The data's own completions: plain distillation (Hinton et al., arXiv:1503.02531)."""

    writes = False

    def rows(self, given: Sequence[TokenRow], moment: Moment, writer: Writer) -> None:
        """None."""


class OnPolicy(SequenceSource):
    """The student's own completions, in a share of the steps (GKD, Agarwal et al., arXiv:2306.13649).

    The other steps are taken on the data. ``ImitKD`` (Lin et al., arXiv:2009.07253) is a probability of 0.5, say.

    Args:
        probability: of a step on what the student writes, lambda.
        sampling: how it writes: temperature 1, no filter and no penalty is its own distribution. ``sampling.seed``
            seeds all draws.
        max_length: most tokens of prompt and completion.

    Raises:
        ValueError: a probability or length out of range, several samples; in training, a prompt that leaves no room.
    """

    share = 0.0  # of the teacher

    def __init__(self, probability: float = 1.0, sampling: Sampling = FREE, max_length: int = 512) -> None:
        check_share(probability=probability)
        check_choice((1,), samples=sampling.samples)
        check_whole(2, max_length=max_length)
        self.probability, self.sampling, self.max_length = probability, sampling, max_length
        self.written = False

    def rows(self, given: Sequence[TokenRow], moment: Moment, writer: Writer) -> list[TokenRow] | None:
        """What the student writes now, or None."""
        self.written = self.uniform(moment) < self.probability
        return self.fresh(given, moment, writer) if self.written else None

    def uniform(self, moment: Moment) -> float:
        """A number in [0, 1) that is the same on all devices and for all micro-batches of a step."""
        return float(uniforms([self.sampling.seed, BRANCH, moment.step], 1)[0])

    def fresh(self, given: Sequence[TokenRow], moment: Moment, writer: Writer) -> list[TokenRow]:
        """The prompts with new completions."""
        longest = min(self.max_length, writer.longest or self.max_length)
        writing = Writing(self.sampling, longest, moment.step, self.share)
        rows = [replace(row, completion=()) for row in given]
        for row in rows:
            if writing.room(row) < 1:
                raise ValueError(
                    f"The prompt of index {row.index} has {len(row.prompt)} tokens, which leaves no room to write in "
                    f"max_length={longest}: raise it, or leave such prompts out of the data."
                )
        return writer.write(rows, writing)

    def numbers(self) -> dict[str, float]:
        """Share of the steps on what was written."""
        return {"written": float(self.written)}


class TeacherMixed(OnPolicy):
    """Completions drawn from a mixture of teacher and student (MiniLLM, Gu et al., arXiv:2306.08543).

        token ~ share p(. | prompt, tokens before it) + (1 - share) q(. | the same)

    Here they are only what is trained on: MiniLLM's policy gradient and its importance weights are another method.

    Args:
        share: of the teacher, alpha.
        probability: see :class:`OnPolicy`, as for the rest.
        sampling: of the mixture.
        max_length: most tokens of prompt and completion.

    Raises:
        ValueError: as :class:`OnPolicy`, or a share out of range.
    """

    needs_teacher = True

    def __init__(
        self, share: float = 0.2, probability: float = 1.0, sampling: Sampling = FREE, max_length: int = 512
    ) -> None:
        super().__init__(probability, sampling, max_length)
        check_share("(0, 1]", share=share)
        self.share = share


def seed_of(*numbers: int) -> int:
    """A seed for an engine."""
    return request_seed(numbers)
