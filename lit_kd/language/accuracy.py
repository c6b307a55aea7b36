"""How often answers are right: problems with pass@k, and labels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_kd.checks import check_choice, check_list, check_whole
from lit_kd.language.answers import Answer, Kind, extract_answer, grade
from lit_kd.language.engines.sampling import Completion
from lit_kd.language.overlap import Overlap
from lit_kd.language.scores import AnswerMetric
from lit_kd.language.summaries import SummaryScores

ScoreKind = Literal["number", "math", "integer", "label", "overlap", "summary"]


def pass_at_k(right: Tensor, samples: int, k: int) -> Tensor:
    """Probability that k answers, drawn without replacement from ``samples`` of a problem, hold a right one.

    ``1 - C(n - c, k) / C(n, k)``, the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, section 2.1).

    Args:
        right: right answers c of each problem, (N,).
        samples: answers n of each problem.
        k: 1 to n; pass@1 is the mean over the answers, which is avg@n.

    Returns:
        float64 (N,).

    Raises:
        ValueError: k is out of range.

    Example:
        >>> pass_at_k(torch.tensor([0, 1, 2, 4]), samples=4, k=2)
        tensor([0.0000, 0.5000, 0.8333, 1.0000], dtype=torch.float64)
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k={k} must lie between 1 and the {samples} answers of a problem.")
    ways = torch.tensor([math.comb(samples - c, k) for c in range(samples + 1)], dtype=torch.float64)
    return 1 - ways[right.cpu().long()] / math.comb(samples, k)


class AnswerAccuracy(AnswerMetric):
    """Right answers of problems, several answers each, over all processes.

    ``compute`` gives, in fractions: ``pass@1`` (the mean over all answers, avg@n) with ``pass@1_low`` and
    ``pass@1_high`` (95 %: Wilson's interval of one answer a problem, else a bootstrap over problems), ``pass@k`` for
    k = 2, 4, ... up to n, ``flexible`` (pass@1 where the answer may stand anywhere), ``unparsable`` and ``finished``
    (shares of answers), ``tokens`` (mean length of an answer) and ``problems``.

    Args:
        samples: answers of each problem, n.
        kind: "number" (GSM8K), "math" (MATH500) or "integer" (AIME), see :func:`lit_kd.language.answers.grade`.
    """

    columns = ("pass@1", "flexible", "unparsable")

    def __init__(self, samples: int, kind: Kind = "number") -> None:
        super().__init__(samples)
        self.kind = kind

    def score(self, answer: Completion, gold: Any) -> tuple[float, float, float]:
        """Right where answers belong; right anywhere; no answer where answers belong."""
        found = grade(answer.text, gold, self.kind)
        return found.strict, found.flexible, not parsed(found.answer, self.kind)

    def compute(self) -> dict[str, float]:
        """The numbers by name."""
        right, n = self.totals()["pass@1"], self.samples
        powers = [2**i for i in range(1, n.bit_length())]
        of_k = {f"pass@{k}": float(pass_at_k(right, n, k).mean()) for k in dict.fromkeys([*powers, n]) if 1 < k <= n}
        return {**super().compute(), **of_k}


class LabelAccuracy(AnswerMetric):
    """Right labels, as in classification, inference between sentences and multiple choice.

    ``compute`` gives, in fractions: ``strict``, with its interval (the whole answer is the label, but for case, blanks
    around it and one period behind it), ``lenient`` (see :func:`find_label`), ``unparsable`` (no label in the answer,
    or several), ``finished``, ``tokens`` and ``problems``. A gain of ``strict`` alone is one of format.

    Args:
        samples: answers of each question, n.
        labels: all there are.

    Raises:
        ValueError: fewer than two labels, two that differ in case only; in ``update``, a gold that is none of them.
    """

    columns = ("strict", "lenient", "unparsable")

    def __init__(self, samples: int, labels: Sequence[str]) -> None:
        super().__init__(samples)
        self.labels = tuple(labels)
        if len({label.casefold() for label in self.labels}) < max(2, len(self.labels)):
            raise ValueError(f"labels={self.labels} must be two or more that differ in more than case.")

    def score(self, answer: Completion, gold: Any) -> tuple[float, float, float]:
        """The whole answer is the label; it holds the label; it holds none, or several."""
        if gold not in self.labels:
            raise ValueError(f"gold={gold!r} is none of the labels {', '.join(self.labels)}.")
        found = find_label(answer.text, self.labels)
        return whole_label(answer.text, self.labels) == gold, found == gold, found is None


def whole_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text consists of, but for case, blanks around it and one period behind it.

    Example:
        >>> whole_label(" Neutral.", ("neutral", "entailment")), whole_label("It is neutral", ("neutral", "entailment"))
        ('neutral', None)
    """
    bare = text.strip().removesuffix(".").rstrip().casefold()
    return next((label for label in labels if label.casefold() == bare), None)


def find_label(text: str, labels: Sequence[str]) -> str | None:
    r"""The label that a text gives; None if it gives none, or several.

    It is the one in the last ``\boxed{}``, behind ``####`` or "the answer is"; else the only one that the text holds as
    a whole word, anywhere. Case does not count, but for labels of one letter: "a" is a word. Negations are not
    understood.

    Example:
        >>> labels = ("entailment", "not entailment")
        >>> find_label("So this is not entailment.", labels), find_label("entailment or not entailment", labels)
        ('not entailment', None)
        >>> find_label("Not (A), a dog barks: the answer is (B).", "ABCDE")
        'B'
    """
    given = extract_answer(text).text
    places = [text] if given is None else [given, text]
    found = (_held(place, labels) for place in places)
    return next((label for label in found if label is not None), None)


def _held(text: str, labels: Sequence[str]) -> str | None:
    """The only label in a text."""
    if (whole := whole_label(text, labels)) is not None:
        return whole
    longest_first = sorted(labels, key=len, reverse=True)  # "not entailment" before "entailment"
    pattern = "|".join(re.escape(one) if len(one) == 1 else f"(?i:{re.escape(one)})" for one in longest_first)
    held = {match.casefold() for match in re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text)}
    return next(label for label in labels if label.casefold() in held) if len(held) == 1 else None


def metric_of(kind: ScoreKind, samples: int, labels: Sequence[str] = ()) -> AnswerMetric:
    """The metric of a kind of answers.

    Args:
        kind: "number", "math", "integer" (:class:`AnswerAccuracy`), "label" (:class:`LabelAccuracy`), "overlap"
            (:class:`lit_kd.language.overlap.Overlap`) or "summary"
            (:class:`lit_kd.language.summaries.SummaryScores`).
        samples: answers of each question.
        labels: all there are, for "label".

    Raises:
        ValueError: an unknown kind; "label" without labels.

    Example:
        >>> metric_of("label", 1, ("yes", "no"))
        LabelAccuracy()
    """
    check_choice(get_args(ScoreKind), kind=kind)
    check_whole(samples=samples)
    check_list(labels=labels)
    if kind == "label":
        return LabelAccuracy(samples, labels)
    if kind == "overlap":
        return Overlap(samples)
    if kind == "summary":
        return SummaryScores(samples)
    return AnswerAccuracy(samples, kind)


def parsed(answer: Answer, kind: Kind) -> bool:
    """Whether an answer of that kind stands where answers belong."""
    return answer.source in ("boxed", "hash", "phrase") and (kind == "math" or answer.value is not None)
