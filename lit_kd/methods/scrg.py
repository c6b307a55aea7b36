"""Sequence correction and re-generation: the teacher mends the worst token, the student goes on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lit_kd.checks import check_choice, check_whole
from lit_kd.language.engines.sampling import uniforms
from lit_kd.losses import error_index
from lit_kd.methods.sources import PICK, Moment, SequenceSource, TokenRow, Writer, Writing, seed_of


class SCRG(SequenceSource):
    """Correct what another source writes (MGSR, Liu et al., arXiv:2407.10068).

    Of each new sequence y, and ``rounds`` times:

    1. in one pass over it, the teacher chooses a token y' at each position, behind the student's own prefix;
    2. j is the position of the largest KL(teacher || student) among those where y' differs from y;
    3. what stands before j is kept, y'_j is put at j, and the student writes on from there.

    Sequences on which the two agree everywhere stay as they are, and one that the teacher ends at j ends there. It is
    the corrected sequence that is trained on and goes into a replay buffer. Published is the above; that y' is sampled,
    and the direction of the divergence, are our reading.

    Args:
        source: what lets the student write, such as :class:`OnPolicy` or :class:`Replay`.
        teacher_pick: "sample": y' is drawn from the teacher's distribution, as a function of (seed, step, index of the
            prompt, round); "argmax": its most probable token.
        rounds: corrections of a sequence; published are 1 to 5, with little between them.

    Raises:
        ValueError: a source in which the student does not write, or that corrects already; no round.
    """

    needs_teacher = True

    def __init__(
        self, source: SequenceSource, teacher_pick: Literal["sample", "argmax"] = "sample", rounds: int = 1
    ) -> None:
        if not getattr(source, "writes", False) or isinstance(source, SCRG):
            raise ValueError(
                f"SCRG corrects what the student writes, and source={type(source).__name__} gives it nothing to "
                "correct: give OnPolicy, TeacherMixed or Replay."
            )
        check_choice(("sample", "argmax"), teacher_pick=teacher_pick)
        check_whole(rounds=rounds)
        self.source, self.teacher_pick, self.rounds = source, teacher_pick, rounds
        self._numbers: dict[str, float] = {}

    def rows(self, given: Sequence[TokenRow], moment: Moment, writer: Writer) -> list[TokenRow] | None:
        """Those of the source, corrected if they are new."""
        correcting = _Correcting(writer, self.teacher_pick, self.rounds)
        rows = self.source.rows(given, moment, correcting)
        self._numbers = {**self.source.numbers(), **correcting.numbers}
        return rows

    @property
    def needs_validation(self) -> bool:  # type: ignore[override]
        """Whether the source does."""
        return self.source.needs_validation

    def check(self, batch_size: int) -> None:
        """As the source."""
        self.source.check(batch_size)

    def validated(self, loss: float) -> None:
        """Tell the source."""
        self.source.validated(loss)

    def numbers(self) -> dict[str, float]:
        """Those of the source; of the last round, the share of rows corrected, means of j / L and of d_j; lengths."""
        return self._numbers

    def state_dict(self) -> dict[str, Any]:
        """That of the source."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand it to the source."""
        self.source.load_state_dict(state)


class _Correcting(Writer):
    """A writer whose rows are corrected."""

    def __init__(self, writer: Writer, teacher_pick: str, rounds: int) -> None:
        self.writer, self.teacher_pick, self.rounds = writer, teacher_pick, rounds
        self.ends, self.longest = writer.ends, writer.longest
        self.numbers: dict[str, float] = {}

    def write(self, rows: Sequence[TokenRow], writing: Writing) -> list[TokenRow]:
        """Write, then correct ``rounds`` times."""
        written = self.writer.write(rows, writing)
        before = _mean_length(written)
        for number in range(self.rounds):
            written = self.corrected(written, replace(writing, round=number))
        self.numbers |= {"length_before": before, "length_after": _mean_length(written)}
        return written

    def compare(
        self, rows: Sequence[TokenRow], picks: Sequence[np.ndarray] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As without correction."""
        return self.writer.compare(rows, picks)

    def corrected(self, rows: list[TokenRow], writing: Writing) -> list[TokenRow]:
        """One round."""
        differences, tokens, teacher_tokens, mask = self.writer.compare(rows, self.picks(rows, writing))
        places = error_index(differences, tokens, teacher_tokens, mask).tolist()
        errors = {row: place for row, place in enumerate(places) if place >= 0}
        result = list(rows)
        for row, place in errors.items():
            mended = (*rows[row].completion[:place], int(teacher_tokens[row, place]))
            result[row] = replace(rows[row], completion=mended)
        left = [row for row in errors if result[row].completion[-1] not in self.ends and writing.room(result[row]) > 0]
        if left:
            again = self.writer.write([result[row] for row in left], replace(writing, round=writing.round + 1))
            for row, continued in zip(left, again, strict=True):
                result[row] = continued
        if errors:
            self.numbers |= {
                "error_place": float(np.mean([place / len(rows[row].completion) for row, place in errors.items()])),
                "error_difference": float(np.mean([float(differences[row, place]) for row, place in errors.items()])),
            }
        self.numbers["corrected"] = len(errors) / len(rows)
        return result

    def picks(self, rows: Sequence[TokenRow], writing: Writing) -> list[np.ndarray] | None:
        """The uniforms by which the teacher draws, or None."""
        if self.teacher_pick == "argmax":
            return None
        seed = seed_of(writing.sampling.seed, PICK, writing.step, writing.round)
        return [uniforms([seed, row.index], len(row.completion)) for row in rows]


def _mean_length(rows: Sequence[TokenRow]) -> float:
    return float(np.mean([len(row.completion) for row in rows]))
