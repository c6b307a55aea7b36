"""The prompts of SSB, and which of the teacher's solutions are trained on."""

import pytest
from shared_data import DATA

from lit_kd.language.hints import (  # fmt: skip  # noqa: E501
    COMPACT_HINTS,
    HINTS,
    LEAKS,
    OFFICIAL_HINTS,
    TUTOR,
    acceptable,
    false_equation,
    hint_prompt,
    question_prompt,
)
from lit_kd.language.problems import read_gsm8k

RIGHT, WRONG = "6*7=42\n\\boxed{42}", "6*7=36, {problem}\n\\boxed{36}"


def test_questions_stand_alone_behind_the_tutor() -> None:
    system, user = question_prompt("What is 6*7?")
    assert system == {"role": "system", "content": TUTOR} and user == {"role": "user", "content": "What is 6*7?"}
    assert question_prompt("What is 6*7?", None) == [user]
    assert "\\boxed{}" in TUTOR and "step by step" in TUTOR


@pytest.mark.parametrize("official", [False, True])
def test_hints_come_in_the_published_order(official: bool) -> None:
    system, user = hint_prompt("What is {right} 6*7?", RIGHT, WRONG, official)
    text = user["content"]
    assert system["content"] == TUTOR
    places = [text.index(part) for part in ("What is {right} 6*7?", RIGHT, WRONG, "\\boxed{}, " if not official else "\\boxed{}, identical")]  # fmt: skip  # noqa: E501
    assert places == sorted(places), "inserted texts are left as they are"
    assert text.count("---") == (6 if official else 0)
    assert not any(line.startswith(" ") for line in text.splitlines())


def test_other_words() -> None:
    found = hint_prompt("6*7?", RIGHT, WRONG, system=None, template=COMPACT_HINTS)
    assert found == [{"role": "user", "content": f"6*7?\nRight:\n{RIGHT}\nWrong:\n{WRONG}"}]
    swapped = hint_prompt("6*7?", RIGHT, WRONG, system="Solve.", template="{x} {wrong} {right} {problem}")
    assert swapped[1]["content"] == f"{{x}} {WRONG} {RIGHT} 6*7?"


def test_templates_are_checked() -> None:
    with pytest.raises(ValueError, match="The template '{problem} {right}' has no place {wrong}"):
        hint_prompt("a", "b", "c", template="{problem} {right}")
    with pytest.raises(ValueError, match="official=True and template=...: leave one of them out"):
        hint_prompt("a", "b", "c", official=True, template=HINTS)


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        (RIGHT, "stop", None),
        (f"\\boxed{{42.0}}, that is\n{RIGHT}", "stop", None),
        (RIGHT, "length", "finish reason length"),
        (RIGHT, "error", "finish reason error"),
        ("The answer is 42.", "stop", "no boxed answer"),
        ("So \\boxed{42", "stop", "no boxed answer"),
        ("\\boxed{41}, no: \\boxed{42}", "stop", "several answers"),
        ("\\boxed{}, that is \\boxed{42}", "stop", "several answers"),
        (WRONG, "stop", "wrong answer"),
        (f"The student\u2019s Response is right. {RIGHT}", "stop", "leak: student's response"),
        (f"As the correct response shows, {RIGHT}", "stop", "leak: correct response"),
        (f"Beware of the incorrect answer 36: students often give it. {RIGHT}", "stop", None),
        (f"Is it \\boxed{{36}}?</think>{RIGHT}", "stop", None),
    ],
)
def test_what_is_accepted(text: str, finish: str, reason: str | None) -> None:
    assert acceptable(text, finish, "42") == reason


def test_lengths_and_phrases_can_be_chosen() -> None:
    assert acceptable("Hence \\boxed{42}", "stop", "42", min_words=3) == "too short"
    assert acceptable("Hence it is \\boxed{42}", "stop", "42", max_words=3) == "too long"
    assert acceptable("Voilà \\boxed{42}", "stop", "42", leaks=("voilà",)) == "leak: voilà"
    assert acceptable("A sample response: \\boxed{42}", "stop", "42", leaks=()) is None


def test_kinds() -> None:
    assert acceptable("\\boxed{073}", "stop", "73", "integer") is None
    assert acceptable("\\boxed{1/2} or \\boxed{0.5}", "stop", "0.5", "math") is None


def test_the_published_check_compares_texts_alone() -> None:
    assert acceptable("The correct response says \\boxed{42}", "length", "42", official=True) is None
    assert acceptable("\\boxed{1080}", "stop", "1,080", official=True) == "wrong answer"
    assert acceptable("\\boxed{1080}", "stop", "1,080") is None


def test_leaks_are_found_in_what_the_prompts_say() -> None:
    """Who quotes the prompt is found out; and the phrases are written as they are looked for."""
    for template in (HINTS, OFFICIAL_HINTS):
        assert any(phrase in template.lower() for phrase in LEAKS)
    assert all(phrase == phrase.lower() for phrase in LEAKS)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("13+8=21;21*3=63;63-16=47", None),
        ("16+8=21", "16+8=21"),
        ("so 6 * 6 = 42 apples", "6 * 6 = 42"),
        ("1 + 2*3 = 7 and 1 + 2*3 = 9", "1 + 2*3 = 9"),
        ("1,000 + 80 = 1,080", None),
        ("10/3 = 3.33, 7/2 = 4, 2 × 3 = 6, 4 x 5 = 20", None),
        ("4 x 5 = 21", "4 x 5 = 21"),
        ("7/2 = 5", "7/2 = 5"),
        ("3 - 5 = 2", "3 - 5 = 2"),
        ("5/0 = 1", "5/0 = 1"),
        ("12 - 10 = 5.", "12 - 10 = 5"),
        ("2x + 3 = 7; x = 3 + 4; (1+2)*3 = 9; 10/4 = 5/2; -2 + 3 = 1; 3 = 4", None),  # not plain: left alone
    ],
)
def test_false_equations(text: str, wrong: str | None) -> None:
    assert false_equation(text) == wrong
    expected = None if wrong is None else f"false equation: {wrong}"
    assert acceptable(f"{text}\n\\boxed{{7}}", "stop", "7") == expected
    assert acceptable(f"{text}\n\\boxed{{7}}", "stop", "7", official=True) is None


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data in {DATA}: set LITKD_DATA")
def test_published_solutions_have_few_false_equations() -> None:
    solutions = [str(problem.solution) for problem in read_gsm8k(DATA / "gsm8k/train.jsonl")]
    assert sum(false_equation(solution) is not None for solution in solutions) == 35  # of 7473, shorthand of people
