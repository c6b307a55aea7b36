"""A language model as judge of answers that no rule can score: pairs in both orders, and marks for conversations.

Judges prefer what stands first, what is longer and what their own family wrote (Zheng et al., arXiv:2306.05685,
section 3.3). So each pair is shown in both orders and only agreement makes a win; how often the place decided, and how
wins go with length, stands in the result. That the judge is of another family than the systems is up to the caller.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lit_kd.checks import check_choice
from lit_kd.intervals import bootstrap_interval, wilson_interval
from lit_kd.language.chat import Message
from lit_kd.language.engines.sampling import Engine, Sampling
from lit_kd.language.summaries import words

JUDGING = Sampling(temperature=0.0, max_new_tokens=512)
PAIR = """\
You compare two answers to the same request. Judge by correctness, by how well the request is met and by how clear \
the answer is. Neither length nor the order in which the answers stand is a merit. Give a short reason, and end with a \
line that is [[A]] if answer A is better, [[B]] if answer B is better, or [[C]] if neither is."""
RUBRIC = """\
You mark the assistant in a conversation: does each of its turns meet what the user asked, is it right, does it heed \
what was said before, and is its tone fit? Length is no merit. Give a short reason, and end with a line that is [[n]], \
n from 1 (useless) to 10 (could not be better)."""

Outcome = Literal["win", "tie", "loss"]  # of the first system
Verdict = Literal["A", "B", "C"] | None


@dataclass(frozen=True)
class Comparison:
    """What a judge said about two systems, question by question.

    Attributes:
        outcomes: "win" and "loss" of the first system where both orders agree, else "tie".
        verdicts: of each question that with the first system's answer as A, and that with it as B; None where the
            judge's reply holds no verdict.
        lengths: words of both answers to each question.
    """

    outcomes: list[Outcome]
    verdicts: list[tuple[Verdict, Verdict]]
    lengths: list[tuple[int, int]]

    def numbers(self) -> dict[str, float]:
        """Shares ``win``, ``tie``, ``loss`` with Wilson's 95 % intervals, and what they may be worth.

        ``position_bias`` is the share of questions where the same place, A or B, won in both orders; ``unparsable``
        that of the judge's replies without a verdict. Of the questions that were decided, ``longer_wins`` is the share
        whose winner has more words (0.5 for equal lengths), and ``winner_words`` and ``loser_words`` are mean lengths:
        a judge that likes length is exposed by them. They are left out where nothing was decided.
        """
        count = len(self.outcomes)
        found = {"questions": float(count)}
        for name in ("win", "tie", "loss"):
            hits = self.outcomes.count(name)
            low, high = wilson_interval(hits, count)
            found |= {name: hits / count, f"{name}_low": low, f"{name}_high": high}
        found["position_bias"] = sum(one == two and one in ("A", "B") for one, two in self.verdicts) / count
        found["unparsable"] = sum(one is None for pair in self.verdicts for one in pair) / (2 * count)
        decided = [
            pair if outcome == "win" else pair[::-1]
            for pair, outcome in zip(self.lengths, self.outcomes, strict=True)
            if outcome != "tie"
        ]
        if decided:
            winners, losers = (sum(column) / len(decided) for column in zip(*decided, strict=True))
            longer = sum((winner > loser) + 0.5 * (winner == loser) for winner, loser in decided)
            found |= {"longer_wins": longer / len(decided), "winner_words": winners, "loser_words": losers}
        return found


def compare(
    engine: Engine,
    questions: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    sampling: Sampling = JUDGING,
    instructions: str = PAIR,
) -> Comparison:
    """Let a judge compare the answers of two systems, each pair in both orders.

    Args:
        engine: the judge.
        questions: what was asked.
        first: the answers of one system.
        second: those of the other.
        sampling: of the judge, one reply.
        instructions: its system message; replies end with ``[[A]]``, ``[[B]]`` or ``[[C]]`` (neither).

    Raises:
        ValueError: no question, unequal numbers, or several samples.
    """
    if not questions or not len(questions) == len(first) == len(second):
        raise ValueError(
            f"{len(questions)} questions, {len(first)} and {len(second)} answers: give one of each system to each."
        )
    _see_one_reply(sampling)
    pairs = [pair for a, b in zip(first, second, strict=True) for pair in ((a, b), (b, a))]
    chats = [
        _chat(instructions, f"Request:\n{questions[number // 2]}\n\nAnswer A:\n{a}\n\nAnswer B:\n{b}")
        for number, (a, b) in enumerate(pairs)
    ]
    found = [verdict(answers[0].text) for answers in engine.generate(chats, sampling)]
    verdicts = list(zip(found[::2], found[1::2], strict=True))
    agreed: dict[tuple[Verdict, Verdict], Outcome] = {("A", "B"): "win", ("B", "A"): "loss"}
    lengths = [(len(words(a)), len(words(b))) for a, b in zip(first, second, strict=True)]
    return Comparison([agreed.get(pair, "tie") for pair in verdicts], verdicts, lengths)


def verdict(text: str) -> Verdict:
    r"""The last verdict in a judge's reply; None: there is none.

    Example:
        >>> verdict("A names [[A]] as better.\nStill: [[B]]"), verdict("A is better.")
        ('B', None)
    """
    found = re.findall(r"\[\[([ABC])\]\]", text)
    return found[-1] if found else None


@dataclass(frozen=True)
class Marks:
    """What a judge gave each conversation, 1 to 10; None where its reply holds no mark in that range."""

    marks: list[int | None]

    def numbers(self) -> dict[str, float]:
        """``mark``, the mean of those there are, with a 95 % bootstrap interval, and ``unparsable``."""
        given = torch.tensor([float(mark) for mark in self.marks if mark is not None])
        found = {"conversations": float(len(self.marks)), "unparsable": 1 - len(given) / len(self.marks)}
        if len(given):
            low, high = bootstrap_interval(given)
            found |= {"mark": float(given.mean()), "mark_low": low, "mark_high": high}
        return found


def rate(
    engine: Engine,
    conversations: Sequence[Sequence[Message]],
    sampling: Sampling = JUDGING,
    rubric: str = RUBRIC,
) -> Marks:
    """Let a judge mark conversations by a rubric.

    Args:
        engine: the judge.
        conversations: messages of user and assistant, with or without a system message.
        sampling: of the judge, one reply.
        rubric: its system message; replies end with ``[[n]]``.

    Raises:
        ValueError: no conversation, one without an assistant's turn, or several samples.
    """
    for number, turns in enumerate(conversations):
        if all(turn["role"] != "assistant" for turn in turns):
            raise ValueError(f"Conversation {number} has no turn of the assistant: there is nothing to mark.")
    if not conversations:
        raise ValueError("conversations is empty: give at least one.")
    _see_one_reply(sampling)
    texts = [
        "\n\n".join(f"{turn['role'].capitalize()}:\n{turn['content']}" for turn in turns) for turns in conversations
    ]
    replies = engine.generate([_chat(rubric, text) for text in texts], sampling)
    return Marks([mark(answers[0].text) for answers in replies])


def mark(text: str) -> int | None:
    """The last mark in a judge's reply, 1 to 10; None: there is none.

    Example:
        >>> mark("Good, but curt: [[8]]"), mark("[[11]]"), mark("8 of 10")
        (8, None, None)
    """
    found = re.findall(r"\[\[(\d{1,3})\]\]", text)
    return int(found[-1]) if found and 1 <= int(found[-1]) <= 10 else None


def _chat(system: str, user: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _see_one_reply(sampling: Sampling) -> None:
    check_choice((1,), samples=sampling.samples)
