r"""Prompts of Semantic Soft Bootstrapping (arXiv:2512.05105): a tutor who solves, and one who has seen two attempts.

The teacher is the same network as the student with more in its context: a right attempt and a typical wrong one. What
it writes is trained on without them, so it must neither speak of them nor end before its answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from lit_kd.language.answers import Kind, answers_match, extract_boxed, grade
from lit_kd.language.chat import Message

TUTOR = (
    "You are an expert mathematics tutor. Solve the problem step by step. Explain each step in detail, clearly, "
    "precisely and without ambiguity, and skip none. End with the final answer inside \\boxed{}."
)

HINTS = """Here is a problem with two attempts at it. The first attempt ends with the right answer, the second one with a wrong answer.

<problem>
{problem}
</problem>

<right>
{right}
</right>

<wrong>
{wrong}
</wrong>

Write a solution of your own for readers who will learn from it and who see nothing but the problem and your text. It must be complete, coherent and correct in every step. Make it robust: where a mistake is likely, say what to beware of and why. Neither mention nor hint at the attempts. End with the final answer inside \\boxed{}, the same as in the right attempt."""  # noqa: E501

OFFICIAL_HINTS = """Two sample responses of students to a problem follow, a correct and an incorrect one. The students had been told to put the final answer inside \\boxed{}, and nothing but the answer in the box was checked, by a program.

The problem is:
---
{problem}
---

This response is correct:
---
{right}
---

This response was labelled incorrect by the automatic checker:
---
{wrong}
---

Write a coherent, fully detailed derivation that stands alone and from which other students will learn. Make it robust by warning of likely errors and wrong lines of reasoning. Never mention or hint that sample responses were given.

Finish with the final answer inside \\boxed{}, identical to the one in the correct response."""  # noqa: E501

COMPACT_HINTS = "{problem}\nRight:\n{right}\nWrong:\n{wrong}"  # for small networks that are trained on it

# A text with one of these, in lower case, speaks of what its reader does not see. Single words would not do: problems
# are about students and wrong answers, too.
LEAKS = (
    "sample response",
    "sample solution",
    "student response",
    "student's response",
    "students' response",
    "student's solution",
    "student's attempt",
    "correct response",
    "incorrect response",
    "wrong response",
    "right response",
    "given response",
    "provided response",
    "first response",
    "second response",
    "right attempt",
    "correct attempt",
    "wrong attempt",
    "incorrect attempt",
    "first attempt",
    "second attempt",
    "two attempts",
    "both attempts",
    "provided solution",
    "the automatic checker",
    "labelled incorrect",
    "labeled incorrect",
    "<right>",
    "<wrong>",
)


def question_prompt(question: str, system: str | None = TUTOR) -> list[Message]:
    """The chat that asks a question, behind a system message if there is one."""
    asked = {"role": "user", "content": question}
    return [asked] if system is None else [{"role": "system", "content": system}, asked]


def hint_prompt(
    problem: str,
    right: str,
    wrong: str,
    official: bool = False,
    *,
    system: str | None = TUTOR,
    template: str | None = None,
) -> list[Message]:
    """The chat that asks for a solution, given a right and a wrong one.

    Args:
        problem: The question.
        right: A solution with the right answer.
        wrong: A solution with a wrong one.
        official: Take `OFFICIAL_HINTS`, which has the parts of the published prompt in its order; its words are ours,
            and the blanks that its source's indentation put before each line are not there.
        system: The system message, or None.
        template: Other words, in which ``{problem}``, ``{right}`` and ``{wrong}`` are replaced; other braces stay.

    Raises:
        ValueError: The template lacks one of the three, or is given beside ``official``.
    """
    if official and template is not None:
        raise ValueError("official=True and template=...: leave one of them out.")
    template = template or (OFFICIAL_HINTS if official else HINTS)
    check_template(template)
    parts = {"{problem}": problem, "{right}": right, "{wrong}": wrong}
    return question_prompt(re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], template), system)


def acceptable(
    completion: str,
    finish_reason: str,
    gold: str,
    kind: Kind = "number",
    *,
    official: bool = False,
    leaks: Sequence[str] = LEAKS,
    min_words: int = 0,
    max_words: int | None = None,
) -> str | None:
    r"""Why a solution must not be trained on, in a few words, or None: it may be.

    It has ended by itself, has one answer in ``\boxed{}``, which is the gold one (repeating it is no harm), no false
    equation between plain numbers, speaks of no attempts and is neither too short nor too long. Equations count since a
    weak model that is shown the right answer arrives at it in any case.

    Args:
        completion: The solution.
        finish_reason: Why its generation ended: "stop", "length" or "error".
        gold: The right answer.
        kind: How answers are compared.
        official: Look, as published, at nothing but whether the last box holds the very text of the gold answer.
        leaks: Phrases, in lower case, that it must not hold.
        min_words: Fewest words.
        max_words: Most words.

    Raises:
        ValueError: As `grade`.

    Example:
        >>> acceptable(r"6 * 7 = 42, so \boxed{42}", "stop", "42")
        >>> acceptable(r"The correct response says \boxed{42}", "stop", "42")
        'leak: correct response'
        >>> acceptable(r"6 * 6 = 42, so \boxed{42}", "stop", "42")
        'false equation: 6 * 6 = 42'
    """
    if official:
        return None if extract_boxed(completion) == gold else "wrong answer"
    if finish_reason != "stop":
        return f"finish reason {finish_reason}"
    boxes = _boxed(completion.rpartition("</think>")[2])
    if not boxes:
        return "no boxed answer"
    if not all(answers_match(box, boxes[0], kind) for box in boxes[1:]):
        return "several answers"
    if not grade(completion, gold, kind).strict:
        return "wrong answer"
    if (wrong := false_equation(completion)) is not None:
        return f"false equation: {wrong}"
    lower = completion.lower().replace("\u2019", "'")
    for phrase in leaks:
        if phrase in lower:
            return f"leak: {phrase}"
    words = len(completion.split())
    if words < min_words:
        return "too short"
    return "too long" if max_words is not None and words > max_words else None


def _boxed(text: str) -> list[str]:
    """All boxed answers, the last one first."""
    found = []
    while (content := extract_boxed(text)) is not None:
        found.append(content)
        text = text[: text.rindex(f"\\boxed{{{content}")]
    return found


_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_SIGN = r"(?:\s?[-+*/×÷−]\s?|\s[xX]\s)"
# Numbers and signs between them; neither may be a part of something longer, such as 2x + 3 = 7 or 10/4 = 5/2.
_EQUATION = re.compile(
    rf"(?<![\w.,)\]}}^$+*/×÷−-])(?<![+*/×÷−=xX-] )({_NUMBER}(?:{_SIGN}{_NUMBER})+)\s?=\s?({_NUMBER})"
    rf"(?![\d.,]*[\w(^]|{_SIGN})"
)


def false_equation(text: str) -> str | None:
    """The first equation of a text that does not hold, such as 12 - 10 = 5; None: all do, as far as they are plain.

    Sums and products of numbers on the left and one number on the right; that may be rounded.
    """
    for found in _EQUATION.finditer(text):
        left, right = found[1].replace(",", ""), found[2].replace(",", "")
        terms = re.split(r"\s?([-+−])\s?", left)
        products = [_product(term) for term in terms[::2]]
        if None in products:  # a division by 0
            return found[0].rstrip(",")
        total = sum(value if sign == "+" else -value for sign, value in zip(["+", *terms[1::2]], products, strict=True))
        divided = re.search("[/÷]", left) is not None
        rounding = Fraction(1, 2 * 10 ** len(right.partition(".")[2])) if divided or "." in right else 0
        if abs(total - Fraction(right)) > rounding:
            return found[0].rstrip(",")
    return None


def _product(term: str) -> Any:
    factors = re.split(r"\s?([*/×÷xX])\s?", term)
    value = Fraction(factors[0])
    for sign, factor in zip(factors[1::2], map(Fraction, factors[2::2]), strict=True):
        if sign in "/÷" and factor == 0:
            return None
        value = value / factor if sign in "/÷" else value * factor
    return value


def check_template(template: str) -> None:
    """See that a template has all its places.

    Raises:
        ValueError: one is missing.
    """
    for place in ("{problem}", "{right}", "{wrong}"):
        if place not in template:
            raise ValueError(f"The template {template!r} has no place {place}: write it where that text goes.")
