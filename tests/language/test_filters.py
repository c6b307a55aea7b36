"""Near-duplicates and contamination, against the definitions."""

import random

from hypothesis import given
from hypothesis import strategies as st

from lit_kd.language.filters import contaminated, grams, near_duplicates, similarity

WORDS = st.lists(st.sampled_from("abc"), max_size=9).map(" ".join)


@given(st.lists(WORDS, max_size=8), st.sampled_from([0.3, 0.5, 0.9, 1.0]), st.sampled_from([1, 2, 5]))
def test_near_duplicates_are_those_of_the_definition(texts: list[str], threshold: float, size: int) -> None:
    sets = [grams(text, size) for text in texts]
    expected: list[int | None] = []
    for position, own in enumerate(sets):
        kept = [other for other in range(position) if expected[other] is None]
        expected.append(next((other for other in kept if similarity(own, sets[other]) >= threshold), None))
    assert near_duplicates(texts, threshold, size) == expected


def test_one_changed_word_of_a_long_text_is_near_and_of_a_short_one_is_not() -> None:
    draw = random.Random(0)
    long = [str(draw.randrange(10**6)) for _ in range(200)]
    changed = [*long[:100], "other", *long[101:]]
    assert near_duplicates([" ".join(long), " ".join(changed)]) == [None, 0]
    assert near_duplicates([" ".join(long[:20]), " ".join([*long[:10], "other", *long[11:20]])]) == [None, None]


def test_groups_keep_texts_apart() -> None:
    assert near_duplicates(["the same", "the same", "the same"], groups=["x", "y", "x"]) == [None, None, 0]


def test_contamination() -> None:
    question = "A baker makes 12 trays of 24 rolls and sells all but 30 of them on Monday. How many does he sell?"
    texts = [question.upper(), f"Think! {question} Explain.", question.replace("of them", "rolls"), "A baker makes 12"]
    assert contaminated(texts, ["x y z", question]) == [1, 1, 1, None]
    assert contaminated([question.replace("trays", "plates").replace("30", "31")], [question]) == [None]
    assert contaminated(texts, []) == [None] * 4
