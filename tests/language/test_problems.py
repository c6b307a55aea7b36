"""Problems of GSM8K, MATH500 and AIME: files in the official format, the real ones, and what is wrong in others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shared_data import DATA

from lit_kd.language.answers import extract_boxed, grade
from lit_kd.language.problems import REQUEST, Problem, read_aime, read_gsm8k, read_math500

Read = Callable[[str | Path], list[Problem]]


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def test_gsm8k_solutions_end_with_a_box_and_hold_no_calculator_marks(tmp_path: Path) -> None:
    answer = "He pays 2*540 = $<<2*540=1080>>1,080.\nThat is it.\n#### 1,080"
    (problem,) = read_gsm8k(lines(tmp_path / "a.jsonl", {"question": "How much? ", "answer": answer}))
    assert problem == Problem("How much?", "He pays 2*540 = $1,080.\nThat is it.\n\\boxed{1,080}", "1,080")


def test_math500_with_and_without_solutions_and_the_added_request(tmp_path: Path) -> None:
    official = {"problem": "What is $1/2$?", "solution": "It is $\\boxed{\\frac12}$.", "answer": "\\frac12", "level": 1}
    bare = {"problem": f"What is $1/2$?{REQUEST}", "answer": "\\frac12"}
    found = read_math500(lines(tmp_path / "a.jsonl", official, "", bare))
    assert [problem.question for problem in found] == ["What is $1/2$?"] * 2
    assert [problem.solution for problem in found] == ["It is $\\boxed{\\frac12}$.", None]
    assert [problem.gold for problem in found] == ["\\frac12"] * 2


def test_aime_of_the_hub_begins_columns_with_capitals_and_has_numbers(tmp_path: Path) -> None:
    hub = {"ID": "2024-II-4", "Problem": "Find it.", "Solution": "\\boxed{033}", "Answer": 33}
    found = read_aime(lines(tmp_path / "a.jsonl", hub, {"problem": "Find it.", "answer": "033"}))
    assert found == [Problem("Find it.", "\\boxed{033}", "33"), Problem("Find it.", None, "033")]


def test_a_line_ends_only_where_json_says_so(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"problem": "One\u2028two\x85three", "answer": "1"}, ensure_ascii=False))
    assert read_math500(file)[0].question == "One\u2028two\x85three"


@pytest.mark.parametrize(
    ("read", "row", "sentence"),
    [
        (read_gsm8k, "{", "Expecting property name"),
        (read_gsm8k, "[1]", "it is not an object with columns"),
        (read_gsm8k, {"question": "a"}, "'answer' must be a text, got None; the columns are question"),
        (read_gsm8k, {"answer": "#### 1"}, "'question' must be a text, got None; the columns are answer"),
        (read_gsm8k, {"question": "a", "answer": "1"}, "No '####' before a gold answer in '1'"),
        (read_gsm8k, {"question": "a", "answer": "it\n####"}, "its gold answer '' is no number"),
        (read_gsm8k, {"question": "a", "answer": "#### x"}, "its gold answer 'x' is no number"),
        (read_math500, {"problem": " ", "answer": "1"}, "'problem' must be a text, got ' '"),
        (read_math500, {"problem": "a", "answer": 1}, "'answer' must be a text, got 1"),
        (read_aime, {"problem": "a", "answer": 1000}, "the answer '1000' is no integer from 0 to 999"),
        (read_aime, {"problem": "a", "answer": "1.0"}, "the answer '1.0' is no integer from 0 to 999"),
        (read_aime, {"problem": "a"}, "'answer' must be a text, got None; the columns are problem"),
    ],
)
def test_bad_lines_are_named(read: Read, row: Any, sentence: str, tmp_path: Path) -> None:
    good = {"question": "a", "problem": "a", "answer": "1 = 1\n#### 1" if read is read_gsm8k else "1"}
    file = lines(tmp_path / "a.jsonl", good, row)
    with pytest.raises(ValueError, match="line 2, is no problem") as error:
        read(file)
    assert sentence in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_empty_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a.jsonl holds no problem"):
        read_gsm8k(lines(tmp_path / "a.jsonl", ""))
    with pytest.raises(FileNotFoundError, match="b.jsonl does not exist: give a file"):
        read_gsm8k(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_bytes(b'{"problem": "\xff"}\n')
    with pytest.raises(ValueError, match="c.jsonl, line 1, is no problem: 'utf-8' codec can't decode"):
        read_math500(tmp_path / "c.jsonl")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA} (environment variable LITKD_DATA)")
class TestRealFiles:
    @pytest.mark.parametrize(("part", "count", "commas"), [("train", 7473, 79), ("test", 1319, 14)])
    def test_gsm8k(self, part: str, count: int, commas: int) -> None:
        problems = read_gsm8k(DATA / f"gsm8k/{part}.jsonl")
        assert len(problems) == count and sum("," in problem.gold for problem in problems) == commas
        for problem in problems:
            assert problem.solution is not None and extract_boxed(problem.solution) == problem.gold
            assert "<<" not in problem.solution and "####" not in problem.solution
            assert grade(problem.solution, problem.gold, "number").strict

    def test_math500(self) -> None:
        problems = read_math500(DATA / "math500/test.jsonl")
        assert len(problems) == 500 and not any("reason step by step" in problem.question for problem in problems)
        assert problems[3].gold == "9" and {problem.solution for problem in problems} == {None}

    def test_aime(self) -> None:
        problems = read_aime(DATA / "aime24/test.jsonl")
        assert len(problems) == 30 and not any("reason step by step" in problem.question for problem in problems)
        assert all(grade(f"\\boxed{{{problem.gold}}}", problem.gold, "integer").strict for problem in problems)
