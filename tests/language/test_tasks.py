"""Tasks: ours, a user's own, and what is wrong with others."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_kd.language.replies import Reply
from lit_kd.language.tasks import FOLDER, fill, read_task

NAMES = ["conversation", "math", "nli", "nlu_qa", "summarization"]
OWN: dict[str, Any] = {
    "system": "Answer.",
    "user": "Q: {q}",
    "columns": {"q": "question", "gold": "answer"},
    "modes": {"plain": {"parser": "text"}},
}


def own(tmp_path: Path, **changes: Any) -> str:
    path = tmp_path / "own.yaml"
    content = {**OWN, **changes}
    path.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))
    return str(path)


def test_ours() -> None:
    assert sorted(file.stem for file in FOLDER.glob("*.yaml")) == NAMES
    for name in NAMES:
        task = read_task(name)
        assert task.name == name and "plain" in task.modes
        assert task.modes["plain"].system is None  # the student's own prompt


def test_nli() -> None:
    task = read_task("nli")
    row = {"premise": "A dog runs.", "hypothesis": "An {animal} runs.", "label": 0}
    plain = task.plain(row)
    assert [message["role"] for message in plain] == ["system", "user"]
    assert "Premise: A dog runs.\nHypothesis: An {animal} runs." in plain[1]["content"]
    told = task.told("cot", plain)
    assert "at most 80 words" in told[0]["content"] and told[1:] == plain[1:]
    assert task.gold(row) == "entailment" and task.gold({**row, "label": "neutral"}) == "neutral"
    reply = task.read("cot", '{"reason": "a dog is an animal", "answer_choice": "Entailment"}')
    assert reply == Reply("entailment", "a dog is an animal") and task.right("entailment", "entailment")
    assert task.target("answer", reply) == "entailment"
    assert task.target("rationale+answer", reply) == "a dog is an animal\nAnswer: entailment"
    with pytest.raises(ValueError, match="its gold answer '7' is none of the labels entailment"):
        task.gold({**row, "label": 7})


def test_choices_become_lettered_lines() -> None:
    task = read_task("nlu_qa")
    choices = {"label": ["A", "B"], "text": ["a bank", "a tree"]}
    for given in (choices, ["a bank", "a tree"], "A. a bank\nB. a tree"):
        (_, user) = task.plain({"question": "Where is money?", "choices": given})
        assert user["content"] == "Where is money?\n\nA. a bank\nB. a tree"


def test_math() -> None:
    task = read_task("math")
    assert task.gold({"final_ans": " 1,080 "}) == "1,080" and task.gold({"final_ans": "9*2=18\n#### 18"}) == "18"
    assert task.right("1080", "1,080") and not task.right("18", "1,080") and task.right("18", None)
    assert task.target("answer", Reply("18", "9 * 2")) == "\\boxed{18}"
    with pytest.raises(ValueError, match="its gold answer 'many' is no number"):
        task.gold({"final_ans": "many"})


def test_chain_of_density_speaks_of_the_words() -> None:
    task = read_task("summarization")
    (system, _) = task.told("cod", task.plain({"article": "x"}))
    assert system["content"].count("80 words") == 2 and "4 times" in system["content"]


def test_places_are_filled_once() -> None:
    assert fill('{a} {"a": {b}}', {"a": "{b}", "b": "{a}"}) == '{b} {"a": {a}}'


def test_a_users_own(tmp_path: Path) -> None:
    task = read_task(own(tmp_path))
    assert task.name == "own" and task.plain({"question": "why?"})[1]["content"] == "Q: why?"
    with pytest.raises(ValueError, match="it has no column 'question' but text: say by columns where"):
        task.plain({"text": "why?"})
    with pytest.raises(ValueError, match="mode='cot' is none of the task 'own': take plain"):
        task.mode("cot")
    with pytest.raises(ValueError, match=r"target='rationale\+answer' is none of the task 'own': take answer"):
        task.target("rationale+answer", Reply("a"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"system": None}, "The task 'own' has no system message: set 'system'"),
        ({"system": " "}, "The task 'own' has no system message"),
        ({"user": "Q?"}, "The task 'own' needs a 'user' message with the places q"),
        ({"modes": {"cot": {}}}, "The task 'own' has no mode 'plain'"),
        ({"modes": {"plain": {"parser": "xml"}}}, "has the parser 'xml': take one of text, label, final, json"),
        ({"modes": {"plain": {"prompt": "x"}}}, "own.yaml has an entry 'prompt' that a Mode does not: system, parser"),
        ({"prompt": "x"}, "own.yaml has an entry 'prompt' that a Task does not: name, modes"),
        ({"check": "exact"}, "has check 'exact': take number, math, label, none"),
        ({"check": "number", "columns": {"q": "q"}}, "has check 'number' and no column for 'gold'"),
        ({"targets": {"reason": "x"}}, r"has targets \['reason'\]: give 'answer'"),
        ({"modes": None}, "own.yaml is no task: it needs at least modes and columns"),
        ({"columns": None}, "own.yaml is no task: it needs at least modes and columns"),
    ],
)
def test_bad_tasks(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_task(own(tmp_path, **changes))


def test_unknown_tasks() -> None:
    with pytest.raises(ValueError, match="task='poetry' is unknown: take conversation, math, nli, nlu_qa, summarizati"):
        read_task("poetry")
    with pytest.raises(FileNotFoundError, match=r"task='no\.yaml' does not exist"):
        read_task("no.yaml")
