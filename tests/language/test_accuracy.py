import doctest
import itertools

import pytest
import torch

from lit_kd import intervals
from lit_kd.intervals import bootstrap_interval, wilson_interval
from lit_kd.language import accuracy
from lit_kd.language.accuracy import AnswerAccuracy, pass_at_k


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
    yes, no = [True] * 3, [False] * 3
    metric.update(
        strict=torch.tensor([[True, False, False], no]),
        flexible=torch.tensor([[True, True, False], no]),
        parsed=torch.tensor([yes, [True, False, False]]),
        finished=torch.tensor([yes, no]),
        tokens=torch.tensor([[10, 20, 30], [1, 2, 3]]),
    )
    metric.update(*(torch.tensor([yes]) for _ in range(4)), torch.tensor([[5, 5, 5]]))
    found = metric.compute()
    assert found["pass@1"] == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert found["pass@2"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["pass@3"] == pytest.approx(2 / 3)
    assert found["flexible"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["unparsable"] == pytest.approx(2 / 9)
    assert found["finished"] == pytest.approx(6 / 9)
    assert found["tokens"] == pytest.approx((60 + 6 + 15) / 9)
    assert found["problems"] == 3
    assert found["pass@1_low"] < found["pass@1"] < found["pass@1_high"]
    assert "pass@4" not in found


def test_one_answer_a_problem() -> None:
    metric = AnswerAccuracy(samples=1)
    right = torch.tensor([[True], [False]])
    metric.update(right, right, right, right, torch.tensor([[4], [6]]))
    found = metric.compute()
    assert (found["pass@1_low"], found["pass@1_high"]) == pytest.approx(wilson_interval(1, 2))
    assert [name for name in found if name.startswith("pass@")] == ["pass@1", "pass@1_low", "pass@1_high"]


def test_k_is_checked() -> None:
    with pytest.raises(ValueError, match="k=5 must lie between 1 and the 4 answers"):
        pass_at_k(torch.tensor([1]), 4, 5)
