"""Judges with known faults: what the result says of them."""

import doctest
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lit_kd.language import judge
from lit_kd.language.engines import Completion, Engine, Sampling
from lit_kd.language.judge import compare, rate

QUESTIONS = ["Name a river.", "Name a sea.", "Name a lake.", "Name a hill."]
LONG = ["The river Po in Italy", "The sea of Marmara", "Lake Como, in the north", "A hill of Rome"]
SHORT = ["Po", "Marmara", "Como", "Aventine"]


class Judge(Engine):
    """Replies by a function of the two answers, or of the whole text."""

    def __init__(self, decide: Callable[..., str]) -> None:
        self.decide = decide

    def generate(
        self, prompts: Sequence[Any], sampling: Sampling, keys: Any = None, budgets: Any = None
    ) -> list[list[Completion]]:
        texts = []
        for prompt in prompts:
            found = re.search(r"Answer A:\n(.*)\n\nAnswer B:\n(.*)", prompt[1]["content"])
            texts.append(self.decide(*found.groups()) if found else self.decide(prompt[1]["content"]))
        return [[Completion(text, "stop", None, 1, 1)] for text in texts]

    def describe(self) -> dict[str, Any]:
        return {"kind": "judge"}


def test_examples() -> None:
    assert doctest.testmod(judge).failed == 0


def test_a_judge_of_the_first_place_decides_nothing() -> None:
    found = compare(Judge(lambda a, b: "It is clear. [[A]]"), QUESTIONS, LONG, SHORT).numbers()
    assert found["tie"] == 1.0 and found["win"] == found["loss"] == 0.0
    assert found["position_bias"] == 1.0 and "longer_wins" not in found


def test_a_judge_that_likes_length_is_exposed() -> None:
    likes_length = Judge(lambda a, b: "[[A]]" if len(a) > len(b) else "[[B]]")
    found = compare(likes_length, QUESTIONS, LONG[:2] + SHORT[2:], SHORT[:2] + LONG[2:]).numbers()
    assert found["win"] == found["loss"] == 0.5 and found["position_bias"] == 0.0
    assert found["longer_wins"] == 1.0 and found["winner_words"] > 4 > found["loser_words"]


def test_wins_have_an_interval() -> None:
    knows = Judge(lambda a, b: "[[A]]" if a in SHORT else "[[B]]" if b in SHORT else "[[C]]")
    found = compare(knows, QUESTIONS, SHORT, [*LONG[:3], "Aventine"]).numbers()
    assert (found["win"], found["tie"]) == (0.75, 0.25)  # two right ones: the place decides, so that none wins
    assert found["win_low"] < 0.75 < found["win_high"] and found["position_bias"] == 0.25
    assert found["longer_wins"] == 0.0


def test_neither_is_better() -> None:
    found = compare(Judge(lambda a, b: "[[C]]"), QUESTIONS, LONG, SHORT).numbers()
    assert found["tie"] == 1.0 and found["position_bias"] == found["unparsable"] == 0.0


def test_replies_without_a_verdict_are_counted() -> None:
    found = compare(Judge(lambda a, b: "[[A]]" if a in SHORT else "B is better"), QUESTIONS, SHORT, LONG).numbers()
    assert found["unparsable"] == 0.5 and found["tie"] == 1.0  # one order alone makes no win


def test_marks() -> None:
    chats = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}] for text in "abcd"]
    given = {"a": "[[2]]", "b": "Fine. [[10]]", "c": "[[0]]", "d": "good"}
    marks = rate(Judge(lambda text: given[text[-1]]), chats)
    assert marks.marks == [2, 10, None, None]
    found = marks.numbers()
    assert found["mark"] == 6.0 and found["unparsable"] == 0.5 and found["mark_low"] <= 6 <= found["mark_high"]
    assert "mark" not in rate(Judge(lambda text: "?"), chats).numbers()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: compare(Judge(str), QUESTIONS, LONG, SHORT[:2]), "4 questions, 4 and 2 answers"),
        (lambda: compare(Judge(str), [], [], []), "0 questions"),
        (lambda: compare(Judge(str), QUESTIONS, LONG, SHORT, Sampling(samples=2)), "samples=2 must be 1"),
        (lambda: rate(Judge(str), []), "conversations is empty"),
        (
            lambda: rate(Judge(str), [[{"role": "user", "content": "Hi"}]]),
            "Conversation 0 has no turn of the assistant",
        ),
    ],
)
def test_bad_input(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
