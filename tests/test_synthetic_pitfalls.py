"""The pitfalls (a) to (h) of evaluating a distilled student (specification, section 2.3), one test or more for each.

Those about the data are tested where the data are written: (f) contamination by the evaluation set in
``tests/datamodules``.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lit_kd.language import comparison
from lit_kd.language.comparison import (
    DISTILLED,
    STUDENT,
    STUDENT_COT,
    TEACHER,
    TEACHER_COT,
    Questions,
    Scored,
    System,
    evaluate,
)
from lit_kd.language.engines import Completion, Engine, Sampling

GREEDY = Sampling(temperature=0.0)
SAMPLED = Sampling(temperature=0.6)


class Says(Engine):
    """Answers question ``key`` by a function of key and seed."""

    def __init__(self, say: Callable[[int, int], str]) -> None:
        self.say, self.asked = say, 0

    def generate(
        self, prompts: Sequence[Any], sampling: Sampling, keys: Any = None, budgets: Any = None
    ) -> list[list[Completion]]:
        self.asked += len(prompts)
        keys = range(len(prompts)) if keys is None else keys
        texts = [self.say(key, sampling.seed) for key in keys]
        return [[Completion(text, "stop", None, 3, len(text.split()))] for text in texts]

    def describe(self) -> dict[str, Any]:
        return {"kind": "says"}


def questions(count: int = 120, **changes: Any) -> Questions:
    prompts = [[{"role": "system", "content": "s"}, {"role": "user", "content": f"{i} + 1?"}] for i in range(count)]
    own: dict[str, Any] = {"prompts": {"plain": prompts, "cot": prompts}, "gold": [str(i + 1) for i in range(count)]}
    return Questions(**{**own, "kind": "number", **changes})


def run(out: Path, asked: Questions, sampling: Sampling = GREEDY, seeds: Any = (0,), **says: Any) -> dict[str, Scored]:
    names = {"student": STUDENT, "student_cot": STUDENT_COT, "distilled": DISTILLED, "teacher": TEACHER}
    names["teacher_cot"] = TEACHER_COT
    systems = [
        System(names[name], lambda say=say: Says(say), name, "cot" if name.endswith("cot") else "plain")  # type: ignore
        for name, say in says.items()
    ]
    return evaluate(systems, asked, sampling, list(seeds), out)


def right(key: int, seed: int) -> str:
    return f"\\boxed{{{key + 1}}}"


def test_a_a_gain_of_format_is_shown_as_one(tmp_path: Path) -> None:
    """The base knows every answer, and does not box it."""
    asked = questions()
    found = run(tmp_path, asked, student=lambda key, seed: f"It is {key + 1}", distilled=right)
    assert [found[name].numbers()["pass@1"] for name in (STUDENT, DISTILLED)] == [0, 1]
    assert found[STUDENT].numbers()["flexible"] == 1 and found[STUDENT].numbers()["unparsable"] == 1
    assert "| flexible |" in comparison.table(found, asked)
    said = " ".join(comparison.notes(found, asked))
    assert "pass@1: 100.0 [100.0, 100.0]" in said and "flexible: 0.0 [0.0, 0.0]" in said and "one of format" in said


def test_a_a_gain_in_knowledge_is_not_called_format(tmp_path: Path) -> None:
    asked = questions()
    found = run(tmp_path, asked, student=lambda key, seed: "\\boxed{0}", distilled=right)
    said = " ".join(comparison.notes(found, asked))
    assert "flexible: 100.0" in said and "one of format" not in said


def test_a_labels_too(tmp_path: Path) -> None:
    asked = questions(gold=["yes"] * 120, kind="label", labels=("yes", "no"))
    found = run(tmp_path, asked, student=lambda key, seed: "I think: yes", distilled=lambda key, seed: "Yes.")
    assert found[STUDENT].numbers()["strict"] == 0 and found[STUDENT].numbers()["lenient"] == 1
    assert "one of format" in " ".join(comparison.notes(found, asked))


def test_b_a_judge_that_looks_at_the_place_gives_ties_and_is_reported(tmp_path: Path) -> None:
    asked = questions()
    found = run(tmp_path, asked, student=right, distilled=right, teacher=lambda key, seed: f"longer: {key + 1}")
    text = comparison.judged(Says(lambda key, seed: "[[A]]"), found, asked)
    assert text.count("\n") == 3 and DISTILLED in text.splitlines()[0]
    assert "| 0.0 [0.0, 3.1] | 100.0 | 0.0 | 100.0 | 0.0 | – |" in text.splitlines()[2]


def test_c_rouge_is_never_the_main_number_of_summaries(tmp_path: Path) -> None:
    """A summary that names more is better by density, and worse by Rouge-L against a vague reference."""
    vague, dense = "A man went to a city and saw people.", "Ana Diaz met Bob Lee in Rome in 2019."
    asked = questions(gold=[vague] * 120, kind="summary")
    found = run(tmp_path, asked, student=lambda key, seed: vague, distilled=lambda key, seed: dense)
    ours, theirs = (found[name].numbers() for name in (DISTILLED, STUDENT))
    assert ours["rougeL"] < theirs["rougeL"] and ours["entity_density"] > theirs["entity_density"]
    header = comparison.table(found, asked).splitlines()[0]
    assert header.index("entity_density") < header.index("words") < header.index("rougeL")
    assert "Rouge-L against human references is secondary" in " ".join(comparison.notes(found, asked))


def test_d_e_scores_against_the_teacher_are_called_imitation(tmp_path: Path) -> None:
    """Gold by the teacher, which is wrong throughout: whoever copies it has 100, and the table says what that is."""
    asked = questions(gold=["7"] * 120, by_teacher=True)
    found = run(tmp_path, asked, student=right, distilled=lambda key, seed: "\\boxed{7}")
    text = comparison.table(found, asked)
    assert "imitation of the teacher" in text.splitlines()[0] and "pass@1" not in text and "| 100.0 [" in text
    assert "not of accuracy" in " ".join(comparison.notes(found, asked))
    assert "imitation" not in comparison.table(found, questions())


def test_f_contamination_in_pre_training_is_said_to_be_unknown(tmp_path: Path) -> None:
    asked = questions()
    assert "in the pre-training" in comparison.notes(run(tmp_path, asked, student=right), asked)[-1]


def test_g_one_draw_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"temperature=0.6 with seeds=\[0\]: one draw is no result"):
        run(tmp_path, questions(), SAMPLED, student=right)
    with pytest.raises(ValueError, match="give at least 3 seeds"):
        run(tmp_path, questions(), SAMPLED, (1, 1, 2), student=right)


def test_g_spread_over_seeds_and_interval_over_questions(tmp_path: Path) -> None:
    """Seed 1 is right throughout, seed 2 never, seed 3 on half of the questions."""
    shares = {1: 120, 2: 0, 3: 60}
    asked = questions()
    found = run(tmp_path, asked, SAMPLED, (1, 2, 3), student=lambda k, s: right(k, s) if k < shares[s] else "no")
    numbers = found[STUDENT].numbers()
    assert numbers["pass@1"] == pytest.approx(0.5) and numbers["sd"] == pytest.approx(0.5)
    assert numbers["pass@1_low"] < 0.5 < numbers["pass@1_high"]
    assert "| 50.0 [" in comparison.table(found, asked) and "| 50.0 |" in comparison.table(found, asked)


def test_g_greedy_answers_are_asked_once(tmp_path: Path) -> None:
    found = run(tmp_path, questions(), GREEDY, (1, 2, 3), student=right)
    assert len(found[STUDENT].answers[0]) == 1 and "sd" not in found[STUDENT].numbers()


def test_h_few_questions_are_a_smoke_test(tmp_path: Path) -> None:
    few = questions(5)
    assert "5 questions are a smoke test" in comparison.notes(run(tmp_path, few, student=right), few)[0]
    asked = questions()
    assert "smoke" not in " ".join(comparison.notes(run(tmp_path / "all", asked, student=right), asked))


def test_five_systems_and_their_cost(tmp_path: Path) -> None:
    """Chains of thought are read by the mode's parser before they are scored, and cost tokens."""
    reads: Callable[[str, str], str] = lambda mode, text: text if mode == "plain" else text.rpartition("so ")[2]  # noqa: E731
    asked = questions(read=reads)
    thinks = lambda key, seed: f"{key} and 1 make more, so {right(key, seed)}"  # noqa: E731
    found = run(tmp_path, asked, student=right, student_cot=thinks, distilled=right, teacher=right, teacher_cot=thinks)
    rows = comparison.table(found, asked).splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == [
        STUDENT,
        STUDENT_COT,
        DISTILLED,
        TEACHER,
        TEACHER_COT,
    ]
    assert rows[3].endswith("| 7.0 |") and rows[4].endswith("| 1.0 |")


def test_answers_are_kept(tmp_path: Path) -> None:
    engine = Says(right)
    asked, system = questions(), System(STUDENT, lambda: engine, "weights")
    for _ in range(2):
        evaluate([system], asked, GREEDY, [0], tmp_path)
    assert engine.asked == 120
    with pytest.raises(ValueError, match="was written with model 'weights', not 'others'"):
        evaluate([System(STUDENT, lambda: engine, "others")], asked, GREEDY, [0], tmp_path)
    file = next(tmp_path.glob("*/rows-00000.jsonl"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:100]))
    evaluate([system], asked, GREEDY, [0], tmp_path)
    assert engine.asked == 140


def test_every_mode_has_its_prompts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The mode 'cot' has not a prompt for each of 120 questions"):
        run(tmp_path, questions(prompts={"plain": ["?"] * 120}), student_cot=right)
