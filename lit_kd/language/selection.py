"""Which rollouts become the hints of Semantic Soft Bootstrapping (Mitra & Ulukus, arXiv:2512.05105)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence


def select_rollouts(
    answers: Sequence[str | None], gold: str, match: Callable[[str, str], bool], seed: int
) -> tuple[int, int] | None:
    """One right and one wrong rollout of a problem.

    The right one is the first. The wrong one is the first with the most frequent wrong answer, among equally frequent
    ones with that seen first; if all wrong answers differ, it is one of them, each with the same probability.

    Args:
        answers: of the rollouts in the order of generation; None where there is none: neither right nor wrong.
        gold: the right answer.
        match: judges an answer by `match(answer, gold)`, and groups the wrong ones by `match(answer, earlier answer)`:
            :func:`lit_kd.language.answers.answers_match`, or ``operator.eq`` as published.
        seed: all that the draw depends on: make it from the run's seed and the number of the problem.

    Returns:
        The two positions in `answers`, or None unless there are both a right and a wrong answer.

    Example:
        >>> from operator import eq
        >>> select_rollouts(["17", "18", None, "20", "17"], "18", eq, seed=0)
        (1, 0)
    """
    right: list[int] = []
    wrong: list[list[int]] = []  # positions, a list for each answer
    for position, answer in enumerate(answers):
        if answer is None:
            continue
        if match(answer, gold):
            right.append(position)
        elif group := next((group for group in wrong if match(answer, str(answers[group[0]]))), None):
            group.append(position)
        else:
            wrong.append([position])
    if not right or not wrong:
        return None
    most = max(wrong, key=len)
    if len(most) == 1:
        most = random.Random(seed).choice(wrong)
    return right[0], most[0]
