"""Questions with answers that are spans of a text: SQuAD 1.1 (arXiv:1606.05250) and 2.0 (arXiv:1806.03822)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SquadExample:
    """A question.

    Attributes:
        id: Unique in its file.
        question: As in the file, left blanks stripped.
        context: The text, as in the file.
        answers: All gold answers, text; empty: the text has no answer.
        answer_starts: Of each answer, its first character in the context.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    answer_starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class SquadFeature:
    """A window of a question's context, as the network reads it.

    Attributes:
        example: Position of the question in its list of examples.
        offsets: Of each token, first and last + 1 character in the context; None for tokens outside of it.
        cls_index: Position of the token that stands for "no answer".
    """

    example: int
    offsets: tuple[tuple[int, int] | None, ...]
    cls_index: int
