"""Mathematical problems with answers: GSM8K (arXiv:2110.14168), MATH500 (arXiv:2305.20050) and AIME 2024."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lit_kd.language.answers import gsm8k_gold
from lit_kd.language.canonical import canonical_number
from lit_kd.language.records import numbered_lines

# What some files add to each question; prompts of ours ask for the box themselves.
REQUEST = "\nPlease reason step by step, and put your final answer within \\boxed{}."
_CALCULATOR = re.compile("<<[^<>]*>>")  # GSM8K's marks for a calculator: 48/2 = <<48/2=24>>24


@dataclass(frozen=True)
class Problem:
    r"""A question and its answer.

    Attributes:
        question: As in the file.
        solution: Text to train on, with the answer in ``\boxed{}``; None: there is none.
        gold: The answer as in the file, without what the file has around it.
    """

    question: str
    solution: str | None
    gold: str


T = TypeVar("T")
Parse = Callable[[Mapping[str, Any]], Problem]


def read_gsm8k(path: str | Path) -> list[Problem]:
    """Problems of an official JSONL file.

    Raises:
        ValueError: A line is no problem of GSM8K; the sentence has its number. Likewise for the other readers.
        FileNotFoundError: There is no such file. Likewise for the other readers.
    """
    return read_problems(path, gsm8k_problem)


def read_math500(path: str | Path) -> list[Problem]:
    """Problems of a JSONL file with at least ``problem`` and ``answer``."""
    return read_problems(path, math500_problem)


def read_aime(path: str | Path) -> list[Problem]:
    """Problems of a JSONL file with at least ``problem`` and ``answer``, either spelt with a capital or not."""
    return read_problems(path, aime_problem)


def gsm8k_problem(row: Mapping[str, Any]) -> Problem:
    r"""One row of GSM8K: the solution is without calculator marks, and its last line ``#### N`` becomes ``\boxed{N}``.

    Raises:
        ValueError: A column is missing or no text, or no number is marked as the answer.

    Example:
        >>> gsm8k_problem({"question": "Half of 48?", "answer": "48/2 = <<48/2=24>>24\n#### 24"}).solution
        '48/2 = 24\n\\boxed{24}'
    """
    answer = _text(row, "answer")
    gold = gsm8k_gold(answer)
    if canonical_number(gold) is None:
        raise ValueError(f"its gold answer {gold!r} is no number")
    steps = _CALCULATOR.sub("", answer.rpartition("####")[0]).rstrip()
    return Problem(_text(row, "question"), f"{steps}\n\\boxed{{{gold}}}".lstrip(), gold)


def math500_problem(row: Mapping[str, Any]) -> Problem:
    """One row of MATH500.

    Raises:
        ValueError: A column is missing or no text.
    """
    solution = _text(row, "solution") if row.get("solution") else None
    return Problem(_text(row, "problem").removesuffix(REQUEST), solution, _text(row, "answer"))


def aime_problem(row: Mapping[str, Any]) -> Problem:
    """One row of AIME.

    Raises:
        ValueError: A column is missing, or the answer is no integer from 0 to 999.
    """
    row = {name.lower(): value for name, value in row.items()}  # Maxwell-Jia/AIME_2024 begins them with capitals
    problem = math500_problem({**row, "answer": str(row["answer"])} if "answer" in row else row)
    if not re.fullmatch("[0-9]{1,3}", problem.gold):
        raise ValueError(f"the answer {problem.gold!r} is no integer from 0 to 999")
    return problem


def read_problems(path: str | Path, parse: Parse) -> list[Problem]:
    """Problems of a JSONL file.

    Raises:
        ValueError: It holds no problem, or one that ``parse`` refuses.
        FileNotFoundError: There is no such file.
    """
    return read_rows(path, parse, "problem")


def read_rows(path: str | Path, parse: Callable[[Mapping[str, Any]], T], what: str) -> list[T]:
    """What ``parse`` makes of the lines of a JSONL file, UTF-8, one row a line; blank lines are left out.

    Args:
        path: Of the file.
        parse: Gets a row, and raises a ValueError that says what is wrong with it.
        what: A word for a row.

    Raises:
        ValueError: It holds no row, or one that ``parse`` refuses; the sentence has the line's number.
        FileNotFoundError: There is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: give a file with one {what} in JSON on each line.")
    rows = []
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not an object with columns")
            rows.append(parse(row))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is no {what}: {str(error).rstrip('.')}.") from error
    if not rows:
        raise ValueError(f"{path} holds no {what}.")
    return rows


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name!r} must be a text, got {value!r}; the columns are {', '.join(row) or 'none'}")
    return value.strip()
