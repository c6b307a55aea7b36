r"""Final answers: found in a reply, read as exact numbers, compared with the gold.

A reply ends with ``\boxed{42}``, ``#### 42`` or "The answer is 42.". What comes out is compared as a number, never as
a string: 1,080 is 1080. Texts that are no plain numbers are compared as formulas, by math-verify in the end.
Whatever a model writes, these functions take time linear in its length.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, get_args

from lit_kd.checks import check_choice
from lit_kd.language.canonical import canonical_formula, canonical_number, is_word
from lit_kd.language.equivalence import compare_formulas, require_math_verify

Kind = Literal["number", "math", "integer"]
Mode = Literal["strict", "flexible"]
Source = Literal["boxed", "broken-box", "hash", "phrase", "last", "none"]
Stage = Literal["nothing", "number", "text", "math-verify", "undecided", "unreadable gold"]  # the last: an error


@dataclass(frozen=True)
class Answer:
    r"""What was found in a reply.

    Attributes:
        text: the answer as the model wrote it; None if there is none.
        value: its number, exact; None if it is not one plain number.
        source: where it stood: "boxed", "hash" (after ``####``), "phrase" ("the answer is"), "last" (the last number of
            the reply), "broken-box" (a box was opened, and none was closed), "none".
    """

    text: str | None
    value: Fraction | None
    source: Source


@dataclass(frozen=True)
class Grade:
    """What a reply is worth.

    Attributes:
        strict: right by its box, ``####`` or answer phrase.
        flexible: right by that or by its last number.
        answer: the strict answer, or the flexible one where there is no strict one.
        stage: what decided about `answer`: "number" (exact values), "text" (equal after clean-up), "math-verify",
            "undecided" (math-verify failed or took too long: counted as wrong), "nothing" (no answer).
    """

    strict: bool
    flexible: bool
    answer: Answer
    stage: Stage


def grade(completion: str, gold: str, kind: Kind) -> Grade:
    r"""Judge a reply against the gold answer.

    Args:
        completion: the whole reply.
        gold: the gold answer's text, such as that of :func:`gsm8k_gold`.
        kind: "number" (GSM8K: exact values), "math" (MATH: any formula) or "integer" (AIME: 0 to 999, with or without
            leading zeros).

    Raises:
        ValueError: an unknown kind, or a gold that can't be read as that kind.
        ModuleNotFoundError: math-verify is missing, for "math".

    Example:
        >>> grade(r"So it is \boxed{1{,}080}.", "1,080", "number").strict
        True
        >>> result = grade("She has 12 left.", "12", "number")
        >>> result.strict, result.flexible, result.answer
        (False, True, Answer(text='12', value=Fraction(12, 1), source='last'))
    """
    _check_gold(gold, kind)
    strict, flexible = extract_answer(completion), extract_answer(completion, "flexible")
    right, stage = _judge(strict.text, gold, kind)
    flexibly_right, flexible_stage = (right, stage) if flexible == strict else _judge(flexible.text, gold, kind)
    if "unreadable gold" in (stage, flexible_stage):
        raise ValueError(f"gold={gold!r} is no formula to math-verify: mend the data.")
    answer, stage = (strict, stage) if strict.text is not None else (flexible, flexible_stage)
    return Grade(right, right or flexibly_right, replace(answer, value=_value(answer.text, kind)), stage)


def answers_match(prediction: str | None, gold: str | None, kind: Kind = "math") -> bool:
    r"""Whether two answers are the same; None is never the same as anything.

    Two plain numbers are equal if their values are. Other texts are never equal for the kinds "number" and "integer";
    for "math" they are if they read the same after clean-up, or if math-verify says so.

    Raises:
        ModuleNotFoundError: math-verify is missing where it is needed.

    Example:
        >>> answers_match("1,080", "1080"), answers_match(r"\frac12", "0.5"), answers_match(None, None)
        (True, True, False)
    """
    return _judge(prediction, gold, kind)[0]


def extract_boxed(text: str) -> str | None:
    r"""What stands in the last ``\boxed{`` that closes, unchanged; None if none does.

    Example:
        >>> extract_boxed(r"first \boxed{41}, then \boxed{\frac{3}{4}}, and \boxed{4")
        '\\frac{3}{4}'
    """
    closed = [box for box in _boxes(text, r"\\boxed\{") if box[1] is not None]
    return max(closed)[1] if closed else None


def extract_answer(text: str, mode: Mode = "strict") -> Answer:
    r"""Find the final answer of a reply.

    The last box that closes and is not empty (``\boxed {4}``, ``\boxed 4`` and ``\fbox{4}`` count) wins. If a box was
    opened and none closed, there is no answer. Otherwise it is the line after the last ``####``, or what follows the
    last "answer is" or "answer:", in flexible mode the last number as well: the first of these that is a number, or
    else the first. Of a reply with ``</think>``, only what follows it is searched.

    Raises:
        ValueError: an unknown mode.

    Example:
        >>> extract_answer("He pays 5 + 13 dollars.\n#### $18.00")
        Answer(text='$18.00', value=Fraction(18, 1), source='hash')
    """
    if mode not in ("strict", "flexible"):
        raise ValueError(f"mode={mode!r} must be 'strict' or 'flexible'.")
    text = text.rpartition("</think>")[2]
    boxes = list(_boxes(text, rf"{_BOX}\{{", bare=True))
    if full := [box for box in boxes if box[1] and box[1].strip()]:
        return _answer(max(full)[1], "boxed")
    if any(content is None for _, content in boxes):
        return Answer(None, None, "broken-box")
    found = [_answer(_after_hashes(text), "hash"), _answer(_after_phrase(text), "phrase")]
    if mode == "flexible":
        found.append(_answer(_last_number(text), "last"))
    found = [answer for answer in found if answer.text]
    numbers = [answer for answer in found if answer.value is not None]
    return (numbers or found or [Answer(None, None, "none")])[0]


def gsm8k_gold(text: str) -> str:
    r"""The gold answer of a GSM8K solution: the line after the last ``####``.

    Raises:
        ValueError: there is none.

    Example:
        >>> gsm8k_gold("He makes 9 * 2 = <<9*2=18>>18 dollars.\n#### 18")
        '18'
    """
    if (gold := _after_hashes(text)) is None:
        raise ValueError(f"No '####' before a gold answer in {text[-60:]!r}: a solution of GSM8K has it.")
    return gold


# Where answers stand

_BOX = r"\\(?:boxed|fbox)\s*"
_BARE_BOX = rf"{_BOX}(?P<bare>[-−]?\d[\d.,]*)|"
_ANSWER_IS = re.compile(r"(?i)\banswers?\b[^.\n:=\d]{0,40}?(?:\b(?:is|are)\b|[:=])[\s*_:]{0,8}(?=[^\s*_:])")
_SENTENCE_END = re.compile(r"(?<!\\)[.;!?](?=[\s*\"'”)]|$)")
_NUMBER_IN_TEXT = re.compile(r"(?:(?<![\w)}\]])[-−])?(?:\\?\$)?(?:\d[\d,.]*(?:/\d[\d,.]*)?|\.\d+)")


def _boxes(text: str, opening: str, bare: bool = False) -> Iterator[tuple[int, str | None]]:
    """Start and content of each box, None for one that is not closed, in no order. One pass with a stack of braces."""
    # Escaped braces are no braces, and in `\\{` the brace is not escaped.
    tokens = (
        rf"(?P<box>{opening})|{_BARE_BOX if bare else ''}(?P<open>\{{)|(?P<close>\}})|\\(?:[{{}}]|\\(?!boxed|fbox))"
    )
    opened: list[int | None] = []
    for token in re.finditer(tokens, text):
        if token.lastgroup == "bare":
            yield token.start("bare"), token["bare"]
        elif token.lastgroup in ("box", "open"):
            opened.append(token.end() if token["box"] else None)
        elif token["close"] and opened and (start := opened.pop()) is not None:
            yield start, text[start : token.start()]
    yield from ((start, None) for start in opened if start is not None)


def _after_hashes(text: str) -> str | None:
    _, mark, rest = text.rpartition("####")
    return rest.partition("\n")[0].strip() if mark else None


def _after_phrase(text: str) -> str | None:
    if not (phrases := deque(_ANSWER_IS.finditer(text), maxlen=1)):
        return None
    line = text[phrases[0].end() :].partition("\n")[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0].strip(" \t*")


def _last_number(text: str) -> str | None:
    numbers = deque(_NUMBER_IN_TEXT.finditer(text), maxlen=1)
    return numbers[0][0].rstrip(".,") if numbers else None


def _answer(text: str | None, source: Source) -> Answer:
    return Answer(text, _value(text, "number"), source)


# Equality


def _judge(prediction: str | None, gold: str | None, kind: Kind) -> tuple[bool, Stage]:
    if prediction is None or gold is None:
        return False, "nothing"
    value, expected = _value(prediction, kind), _value(gold, kind)
    equations = "=" in prediction and "=" in gold  # x = 5 is not y = 5
    if kind != "math" or (value is not None and expected is not None and not equations):
        return value is not None and value == expected, "number"
    ours, theirs = canonical_formula(prediction), canonical_formula(gold)
    if ours == theirs:
        return bool(theirs), "text"
    # math-verify takes a word for a product of letters, and drops the base of 52_8.
    bases = {match[1] for text in (ours, theirs) if (match := re.fullmatch(r"\w+_\{?(\d+)\}?", text))}
    if is_word(theirs) or len(bases) == 2:
        return False, "text"
    verdict = compare_formulas(prediction, gold)
    if verdict == "undecided" or verdict == "unreadable gold":
        return False, verdict
    return verdict == "equal", "math-verify"


def _value(text: str | None, kind: Kind) -> Fraction | None:
    value = None if text is None else canonical_number(text)
    if kind == "integer" and value is not None and not (value.denominator == 1 and 0 <= value <= 999):
        return None
    return value


def _check_gold(gold: str, kind: Kind) -> None:
    check_choice(get_args(Kind), kind=kind)
    if kind == "math":
        require_math_verify()
        readable = bool(canonical_formula(gold))
    else:
        readable = _value(gold, kind) is not None
    if not readable:
        raise ValueError(f"gold={gold!r} can not be read as an answer of kind={kind!r}: mend the data, or the kind.")
