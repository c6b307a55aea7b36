"""Spans from logits: the case of the specification, an independent slow loop, and the odd questions."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_kd.language.squad import SquadExample, SquadFeature
from lit_kd.language.squad_spans import predict_spans

PARIS = SquadExample("paris", "Which city?", "Paris is big")
OFFSETS = (None, None, None, (0, 5), (6, 8), (9, 12), None)  # CLS and SEP around a question of one token
FEATURES = [SquadFeature(0, OFFSETS, 0), SquadFeature(0, OFFSETS, 0)]


def logits(*windows: tuple[list[float], list[float]]) -> dict[int, tuple[Tensor, Tensor]]:
    return {index: (torch.tensor(start), torch.tensor(end)) for index, (start, end) in enumerate(windows)}


A = ([1, 9, 0, 4, 0.5, 1, 0], [1.5, 0, 9, 2, 0, 3.5, 0])
B = ([3, 9, 0, 2, 0, 0, 0], [2, 0, 9, 2.5, 0, 0, 0])


def test_span_case() -> None:
    found = predict_spans(logits(A, B), [PARIS], FEATURES)["paris"]
    assert (found.text, found.span, found.null_odds) == ("Paris is big", "Paris is big", -5.0)
    assert [(c.text, c.score) for c in found.n_best[:3]] == [("Paris is big", 7.5), ("Paris", 6.0), ("big", 4.5)]
    assert [c.score for c in found.n_best if c.text == ""] == [2.5]
    assert sum(c.probability for c in found.n_best) == pytest.approx(1)
    assert found.n_best[0].probability / found.n_best[1].probability == pytest.approx(math.exp(1.5))


@pytest.mark.parametrize(("threshold", "text"), [(0, "Paris is big"), (-5, "Paris is big"), (-6, ""), (-5.01, "")])
def test_threshold_is_strict(threshold: float, text: str) -> None:
    found = predict_spans(logits(A, B), [PARIS], FEATURES, null_threshold=threshold)["paris"]
    assert (found.text, found.span) == (text, "Paris is big")


def test_length_counts_tokens() -> None:
    found = predict_spans(logits(A, B), [PARIS], FEATURES, max_answer_length=2)["paris"]
    assert (found.text, found.n_best[0].score) == ("Paris", 6.0)
    assert all(c.text != "Paris is big" for c in found.n_best)


def test_no_answer_comes_back_into_a_short_list() -> None:
    found = predict_spans(logits(A, B), [PARIS], FEATURES, n_best=1)["paris"]
    assert found.n_best[0].text == "" and len(found.n_best) == 1  # the one start and end sit on the question
    found = predict_spans(logits(A, B), [PARIS], FEATURES, n_best=3)["paris"]
    assert [(c.text, c.score) for c in found.n_best] == [
        ("Paris is big", 7.5), ("Paris", 6.0), ("Paris", 4.5), ("", 2.5)
    ]  # fmt: skip


def test_a_question_without_any_span_is_not_answered() -> None:
    backwards = ([0, 0, 0, 0, 0, 5, 0], [0, 0, 0, 5, 0, 0, 0])
    found = predict_spans(logits(backwards), [PARIS], FEATURES, n_best=1, null_threshold=math.inf)["paris"]
    assert (found.text, found.span, found.null_odds) == ("", "", math.inf)
    assert [(c.text, c.probability) for c in found.n_best] == [("", 1.0)]


def test_no_answer_token_may_stand_anywhere() -> None:
    left_padded = SquadFeature(0, (None, None, (0, 5), None), cls_index=1)
    found = predict_spans(logits(([9, 1, 2, 0], [9, 1, 2, 0])), [PARIS], [left_padded])["paris"]
    assert found.null_odds == -2


def test_padding_of_the_batch_changes_nothing() -> None:
    padded = [(start + [0, 0], end + [0, 0]) for start, end in (A, B)]
    assert predict_spans(logits(*padded), [PARIS], FEATURES) == predict_spans(logits(A, B), [PARIS], FEATURES)


def test_only_questions_that_were_seen_are_answered() -> None:
    examples = [SquadExample("unseen", "?", "x"), PARIS]
    features = [SquadFeature(0, OFFSETS, 0), SquadFeature(1, OFFSETS, 0)]
    seen = logits(B, A)
    del seen[0]
    assert list(predict_spans(seen, examples, features)) == ["paris"]


def test_equal_scores_go_to_the_first_window_and_ties_are_answered() -> None:
    features = [SquadFeature(0, ((0, 5),), 0), SquadFeature(0, ((6, 8),), 0)]
    found = predict_spans(logits(([1], [1]), ([1], [1])), [PARIS], features)["paris"]
    assert (found.text, found.null_odds) == ("Paris", 0.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6), st.floats(-3, 3))
def test_equals_a_slow_loop(seed: int, n_best: int, longest: int, threshold: float) -> None:
    """Every pair of tokens of every window, by definition."""
    generator = torch.Generator().manual_seed(seed)
    context = "zero one two three four five six seven"
    words, place = [], 0
    for word in context.split():
        words.append((place, place + len(word)))
        place += len(word) + 1
    features = [SquadFeature(0, (None, None, None, *words[first : first + 4], None), first % 2) for first in (0, 2, 4)]
    scores = {i: tuple(torch.randn(2, 8, generator=generator, dtype=torch.float64) * 2) for i in range(3)}
    found = predict_spans(scores, [SquadExample("q", "?", context)], features, n_best, longest, threshold)["q"]

    null, spans = math.inf, []
    for index, (start, end) in scores.items():
        feature = features[index]
        cls = feature.cls_index
        null = min(null, float(start[cls] + end[cls]))
        for i, j in itertools.product(range(8), repeat=2):
            tried = (start > start[i]).sum() < n_best and (end > end[j]).sum() < n_best
            if tried and feature.offsets[i] and feature.offsets[j] and i <= j and j - i + 1 <= longest:
                text = context[feature.offsets[i][0] : feature.offsets[j][1]]
                spans.append((float(start[i] + end[j]), text))
    spans.sort(reverse=True)
    best, text = spans[0] if spans else (-math.inf, "")
    assert found.span == text
    assert found.null_odds == pytest.approx(null - best)
    assert found.text == ("" if null - best > threshold else text)
    listed = sorted([*spans, (null, "")], reverse=True)
    expected = listed[:n_best] if (null, "") in listed[:n_best] else [*listed[:n_best], (null, "")]
    assert [c.text for c in found.n_best] == [text for _, text in expected]
    assert [c.score for c in found.n_best] == pytest.approx([score for score, _ in expected])
    total = sum(math.exp(score) for score, _ in expected)
    assert [c.probability for c in found.n_best] == pytest.approx([math.exp(s) / total for s, _ in expected])
