"""Which rollouts become hints: the reference implementation and the cases of the specification."""

import operator
from collections import Counter

import pytest
from golden_data import golden_arrays

from lit_kd.language.answers import answers_match
from lit_kd.language.selection import select_rollouts


@pytest.mark.parametrize(("match", "prefix"), [(operator.eq, ""), (answers_match, "expected_correct_")])
def test_agrees_with_the_reference(match, prefix: str) -> None:
    golden = golden_arrays("ssb_rollout_selection")
    for row, count in enumerate(golden["count"]):
        answers = [
            None if none else str(text)
            for text, none in zip(golden["answers"][row, :count], golden["is_none"][row, :count], strict=True)
        ]
        found = {select_rollouts(answers, str(golden["gold"][row]), match, seed) for seed in range(50)}
        if not golden[f"{prefix}usable"][row]:
            assert found == {None}
            continue
        wrong = {int(golden[f"{prefix}wrong_index"][row])}
        if golden[f"{prefix}random_choice"][row]:
            wrong = set(golden[f"{prefix}random_candidate_indices"][row].nonzero()[0].tolist())
        assert found == {(int(golden[f"{prefix}correct_index"][row]), index) for index in wrong}


@pytest.mark.parametrize(
    ("answers", "pair"),
    [
        (["1", "9", "2", "2"], (1, 2)),
        (["9", "1", "1", "2", "2"], (0, 1)),  # a tie: seen first
        (["9", "1", "2", "2", "1"], (0, 1)),
        ([None, None, "9", None, "1"], (2, 4)),
        (["9", "500", "1,080", "1080"], (0, 2)),  # equal numbers count together
        (["9", "9.0", "x"], (0, 2)),
        (["9", None], None),
        (["1", None, "1"], None),
        ([], None),
    ],
)
def test_cases(answers: list[str | None], pair: tuple[int, int] | None) -> None:
    assert {select_rollouts(answers, "9", answers_match, seed) for seed in range(20)} == {pair}


def test_the_draw_is_uniform_and_the_seed_is_all() -> None:
    answers = ["9", "1", "2", "3"]
    pairs = [select_rollouts(answers, "9", operator.eq, seed) for seed in range(3000)]
    assert pairs == [select_rollouts(answers, "9", operator.eq, seed) for seed in range(3000)]
    counts = Counter(pairs)
    assert set(counts) == {(0, 1), (0, 2), (0, 3)}
    assert all(abs(count - 1000) < 130 for count in counts.values())  # five standard deviations
