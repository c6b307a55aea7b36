"""From start and end logits of windows to one answer a question, as the SQuAD baselines read them off.

Devlin et al., "BERT", arXiv:1810.04805, section 4.3; google-research/bert, run_squad.py.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lit_kd.checks import check_whole
from lit_kd.language.squad import SquadExample, SquadFeature


@dataclass(frozen=True)
class SpanCandidate:
    """An entry of the n-best list.

    Attributes:
        text: Part of the context; "" for "no answer".
        score: Start logit + end logit.
        probability: Softmax of the scores of the list.
    """

    text: str
    score: float
    probability: float


@dataclass(frozen=True)
class SpanPrediction:
    """What was read off for a question.

    Attributes:
        text: The answer; "" where `null_odds` exceed the threshold, and where there is no span at all.
        span: Text of the best span, whatever the threshold says; "" where there is none.
        null_odds: Score of "no answer" - score of the best span; infinite without a span.
        n_best: Best first; "no answer" is always among them.
    """

    text: str
    span: str
    null_odds: float
    n_best: tuple[SpanCandidate, ...]


def predict_spans(
    logits: Mapping[int, tuple[Tensor, Tensor]],
    examples: Sequence[SquadExample],
    features: Sequence[SquadFeature],
    n_best: int = 20,
    max_answer_length: int = 30,
    null_threshold: float = 0.0,
) -> dict[str, SpanPrediction]:
    r"""Answers of the questions of which a window was seen.

    .. math:: s_{null} = \min_w (start_w[cls] + end_w[cls]), \quad
              s_{span} = \max_{w, i \le j < i + length} (start_w[i] + end_w[j])

    The minimum: every window w has to want "no answer". i and j are context tokens, from the `n_best` highest start
    and end logits of their window. The answer is "" if s_null - s_span > `null_threshold`.

    Args:
        logits: Of windows by their position in `features`: start and end logits, each (T,); T may be larger than the
            number of offsets, by padding on the right.
        examples: The questions.
        features: All windows of the questions.
        n_best: Length of the list, and of the starts and ends tried in a window.
        max_answer_length: Of a span, tokens.
        null_threshold: Infinity: always a span, as SQuAD 1.1 wants it.

    Returns:
        By the id of the question, in the order of `examples`.

    Raises:
        ValueError: `n_best` or `max_answer_length` is not positive.

    Example:
        >>> example = SquadExample("q", "Which city?", "Paris is big")
        >>> window = SquadFeature(0, (None, (0, 5), (6, 8), (9, 12)), cls_index=0)
        >>> from torch import tensor
        >>> scores = {0: (tensor([1.0, 4.0, 0.0, 0.0]), tensor([1.0, 3.0, 0.0, 2.0]))}
        >>> found = predict_spans(scores, [example], [window])["q"]
        >>> found.text, found.null_odds, [c.text for c in found.n_best[:2]]
        ('Paris', -5.0, ['Paris', 'Paris is big'])
    """
    check_whole(n_best=n_best, max_answer_length=max_answer_length)
    windows: dict[int, list[int]] = defaultdict(list)
    for index in sorted(logits):
        windows[features[index].example].append(index)
    predictions = {}
    for number in sorted(windows):
        example = examples[number]
        spans: list[tuple[float, str]] = []
        null = math.inf
        for index in windows[number]:
            start, end = (values.tolist() for values in logits[index])
            feature = features[index]
            null = min(null, start[feature.cls_index] + end[feature.cls_index])
            spans += _spans(start, end, feature, example.context, n_best, max_answer_length)
        spans.sort(key=lambda span: -span[0])  # stable: of equal scores the first window, then the best start
        predictions[example.id] = _prediction(spans[:n_best], null, n_best, null_threshold)
    return predictions


def _spans(
    start: list[float], end: list[float], feature: SquadFeature, context: str, n_best: int, max_answer_length: int
) -> list[tuple[float, str]]:
    """Score and text of each candidate of a window, in the order of its starts and ends."""
    offsets = feature.offsets
    spans = []
    ends = [(j, found) for j in _highest(end, n_best) if (found := _offset(offsets, j))]
    for i in _highest(start, n_best):
        first = _offset(offsets, i)
        if first:
            for j, last in ends:
                if i <= j < i + max_answer_length:
                    spans.append((start[i] + end[j], context[first[0] : last[1]]))
    return spans


def _highest(values: list[float], number: int) -> list[int]:
    return sorted(range(len(values)), key=lambda position: -values[position])[:number]


def _offset(offsets: Sequence[tuple[int, int] | None], position: int) -> tuple[int, int] | None:
    return offsets[position] if position < len(offsets) else None  # padding of the batch


def _prediction(spans: list[tuple[float, str]], null: float, n_best: int, null_threshold: float) -> SpanPrediction:
    none = (null, "")
    listed = sorted([*spans, none], key=lambda entry: -entry[0])[:n_best]
    if not any(entry is none for entry in listed):
        listed.append(none)
    weights = [math.exp(score - listed[0][0]) for score, _ in listed]
    candidates = tuple(
        SpanCandidate(text, score, weight / sum(weights)) for (score, text), weight in zip(listed, weights, strict=True)
    )
    best, span = spans[0] if spans else (-math.inf, "")
    odds = null - best
    return SpanPrediction("" if odds > null_threshold else span, span, odds, candidates)
