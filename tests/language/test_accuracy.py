import doctest
import itertools
from typing import Any

import pytest
import torch

from lit_kd import intervals
from lit_kd.intervals import bootstrap_interval, wilson_interval
from lit_kd.language import accuracy
from lit_kd.language.accuracy import AnswerAccuracy, LabelAccuracy, find_label, metric_of, pass_at_k
from lit_kd.language.engines import Completion


def completions(texts: list[str], tokens: list[int] | None = None, reason: Any = "stop") -> list[Completion]:
    return [Completion(t, reason, None, 1, n) for t, n in zip(texts, tokens or [1] * len(texts), strict=True)]


def test_examples() -> None:
    assert doctest.testmod(accuracy).failed == doctest.testmod(intervals).failed == 0


@pytest.mark.parametrize(("right", "samples", "k"), [(1, 4, 2), (3, 5, 3), (2, 6, 1), (5, 5, 5)])
def test_pass_at_k_is_the_share_of_all_choices(right: int, samples: int, k: int) -> None:
    answers = [True] * right + [False] * (samples - right)
    choices = list(itertools.combinations(answers, k))
    expected = sum(map(any, choices)) / len(choices)
    assert float(pass_at_k(torch.tensor([right]), samples, k)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(188, 500, 33.5, 41.9), (277, 500, 51.0, 59.7), (0, 30, 0.0, 11.4), (1, 30, 0.6, 16.7), (4, 30, 5.3, 29.7)],
)
def test_intervals_of_the_published_numbers(right: int, count: int, low: float, high: float) -> None:
    assert [100 * bound for bound in wilson_interval(right, count)] == pytest.approx([low, high], abs=0.06)


def test_bootstrap_has_the_width_of_a_mean() -> None:
    values = (torch.arange(400) % 2).double()
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.006)
    assert bootstrap_interval(values) == (low, high)


def test_numbers_of_a_few_answers() -> None:
    metric = AnswerAccuracy(samples=3)
    box, last = r"\boxed{5}", "5"
    metric.update([completions([box, last, "none"], [10, 20, 30])], ["5"])
    metric.update([completions([r"\boxed{6}", "six", "7"], [1, 2, 3], "length")], ["5"])
    metric.update([completions([box, box, box], [5, 5, 5])], ["5"])
    found = metric.compute()
    assert found["pass@1"] == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert found["pass@2"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["pass@3"] == pytest.approx(2 / 3)
    assert found["flexible"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["unparsable"] == pytest.approx(4 / 9)
    assert found["finished"] == pytest.approx(6 / 9)
    assert found["tokens"] == pytest.approx((60 + 6 + 15) / 9)
    assert found["problems"] == 3
    assert found["pass@1_low"] < found["pass@1"] < found["pass@1_high"]
    assert "pass@4" not in found


def test_one_answer_a_problem() -> None:
    metric = AnswerAccuracy(samples=1)
    metric.update([completions(["#### 4"]), completions(["#### 5"])], ["4", "4"])
    found = metric.compute()
    assert (found["pass@1_low"], found["pass@1_high"]) == pytest.approx(wilson_interval(1, 2))
    assert [name for name in found if name.startswith("pass@")] == ["pass@1", "pass@1_low", "pass@1_high"]


def test_kinds_of_answers() -> None:
    metric = AnswerAccuracy(samples=1, kind="integer")
    metric.update([completions([r"\boxed{073}"]), completions([r"\boxed{7.5}"])], ["73", "7"])
    assert metric.compute()["pass@1"] == 0.5 and metric.compute()["unparsable"] == 0.5


def test_the_number_of_answers_is_checked() -> None:
    with pytest.raises(ValueError, match="has 1 answers instead of samples=2"):
        AnswerAccuracy(samples=2).update([completions(["4"])], ["4"])


NLI = ("entailment", "contradiction", "neutral")


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("neutral", True, True),
        (" Neutral.\n", True, True),
        ("neutral..", False, True),
        ("The label is Neutral, since nothing is said.", False, True),
        (r"It could be entailment, but no: \boxed{neutral}", False, True),
        ("Not entailment. The answer is neutral.", False, True),
        ("entailment, or neutral?", False, False),
        ("neutrality", False, False),
        ("contradiction", False, False),
        ("", False, False),
    ],
)
def test_labels(text: str, strict: bool, lenient: bool) -> None:
    metric = LabelAccuracy(1, NLI)
    metric.update([completions([text])], ["neutral"])
    found = metric.compute()
    assert (found["strict"], found["lenient"]) == (strict, lenient)
    assert found["unparsable"] == (find_label(text, NLI) is None) == (text != "contradiction" and not lenient)


@pytest.mark.parametrize(
    ("text", "label"),
    [("B", "B"), ("b.", "B"), ("(C)", "C"), ("a dog: D", "D"), ("A or B", None), ("CAB", None), ("E. a plan B", None)],
)
def test_letters(text: str, label: str | None) -> None:
    assert find_label(text, "ABCDE") == label


def test_labels_of_several_samples() -> None:
    metric = LabelAccuracy(2, ("yes", "no"))
    metric.update([completions(["Yes.", "I say yes"]), completions(["no", "yes and no"])], ["yes", "yes"])
    found = metric.compute()
    assert (found["strict"], found["lenient"], found["unparsable"]) == (0.25, 0.5, 0.25)
    assert found["strict_low"] <= 0.25 <= found["strict_high"] and found["problems"] == 2


def test_metrics_by_kind() -> None:
    kinds = {"number": "AnswerAccuracy", "math": "AnswerAccuracy", "overlap": "Overlap", "summary": "SummaryScores"}
    assert {kind: type(metric_of(kind, 1)).__name__ for kind in kinds} == kinds  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"labels=\(\) must be two or more"):
        metric_of("label", 1)
    with pytest.raises(ValueError, match=r"labels=\('yes', 'Yes'\) must be two or more that differ"):
        metric_of("label", 1, ("yes", "Yes"))
    with pytest.raises(ValueError, match="gold='maybe' is none of the labels yes, no"):
        metric_of("label", 1, ("yes", "no")).update([completions(["yes"])], ["maybe"])


def test_k_is_checked() -> None:
    with pytest.raises(ValueError, match="k=5 must lie between 1 and the 4 answers"):
        pass_at_k(torch.tensor([1]), 4, 5)
