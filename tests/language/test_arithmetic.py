"""Generated problems: every equation holds, training and test are apart, and the tokenizer fits them."""

import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lit_kd.language.answers import grade
from lit_kd.language.arithmetic import LARGEST, STORIES, Arithmetic, Event, make_arithmetic, train_tokenizer
from lit_kd.language.chat import encode_completion, encode_prompt, end_tokens, lm_tokenizer
from lit_kd.language.hints import COMPACT_HINTS, hint_prompt, question_prompt

EVERY = tuple(LARGEST)


def made(split: Any, count: int, levels: tuple[int, ...] = EVERY, seed: int = 0) -> list[Arithmetic]:
    return [make_arithmetic(seed, split, index, levels) for index in range(count)]


def equations(solution: str) -> list[bool]:
    """Which of its lines before the box are true, evaluated by Python."""
    *lines, box = solution.splitlines()
    assert re.fullmatch(r"\\boxed\{\d+\}", box)
    assert all(re.fullmatch(r"\d+[-+*]\d+=\d+", line) for line in lines)
    return [eval(line.replace("=", "==")) for line in lines]


@pytest.mark.parametrize("level", EVERY)
def test_every_equation_holds_and_the_last_is_the_answer(level: int) -> None:
    for one in made("train", 2000, (level,)) + made("test", 500, (level,)):
        problem = one.problem()
        assert problem.solution is not None
        assert equations(problem.solution) == [True] * level
        assert problem.solution.splitlines()[-2].endswith(f"={problem.gold}")
        assert grade(problem.solution, problem.gold, "number").strict
        assert 0 <= int(problem.gold) < 10000


def test_questions_tell_the_numbers_of_their_solutions() -> None:
    """Independently of how they are made: the events' numbers are in the question, in their order."""
    for one in made("train", 3000):
        numbers = [one.start, *(n for event in one.events for n in ([event.amount] if event.packs == 1 else [event.packs, event.amount]))]  # fmt: skip  # noqa: E501
        told = list(map(int, re.findall(r"\d+", one.question)))
        assert sorted(told) == sorted(numbers) and told[0] == one.start
        assert not re.search(r"[{}]", one.question) and one.question.endswith("?")


def test_all_stories_and_all_sentences_occur() -> None:
    text = "\n".join(one.question for one in made("train", 3000))
    for story in STORIES:
        for sentence in (story.start, *story.more, *story.fewer, story.packs_more, story.packs_fewer, story.times):
            assert re.search(re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(sentence)), text), sentence


def test_a_slip_is_one_wrong_equation_and_a_wrong_answer() -> None:
    for number, one in enumerate(made("train", 3000)):
        problem, wrong = one.problem(), one.wrong(random.Random(number))
        assert equations(wrong).count(False) == 1
        assert not grade(wrong, problem.gold, "number").flexible
        assert wrong.splitlines()[-2].endswith(f"={grade(wrong, '0', 'number').answer.text}")


def test_by_hand() -> None:
    one = Arithmetic("?", 5, (Event("+", 4, 3), Event("*", 2), Event("-", 7)))
    assert one.work() == (["3*4=12", "5+12=17", "17*2=34", "34-7=27"], [12, 17, 34, 27])
    assert one.work((1, 10))[0] == ["3*4=12", "5+12=27", "27*2=54", "54-7=47"]


def test_training_and_test_are_apart_whatever_the_seeds() -> None:
    for levels in ((1,), EVERY):
        train = {(one.start, one.events) for seed in (0, 1) for one in made("train", 3000, levels, seed)}
        assert not train & {(one.start, one.events) for seed in (0, 5) for one in made("test", 1000, levels, seed)}
    assert len({one.question for one in made("test", 500, (2, 3))}) > 450


def test_a_problem_is_a_function_of_seed_and_index() -> None:
    """In another process as well, where hashes of texts differ."""
    code = "from lit_kd.language.arithmetic import *; print(make_arithmetic(3, 'test', 7, (2, 4)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert other.stdout.strip() == str(make_arithmetic(3, "test", 7, (2, 4)))
    assert make_arithmetic(4, "test", 7, (2, 4)) != make_arithmetic(3, "test", 7, (2, 4))


def test_the_tokenizer(tmp_path: Path) -> None:
    path = train_tokenizer(tmp_path / "new" / "tokenizer")
    tokenizer, again = AutoTokenizer.from_pretrained(path), lm_tokenizer(train_tokenizer(tmp_path / "again"))
    assert len(tokenizer) <= 1024 and tokenizer.get_vocab() == again.get_vocab()
    for one in made("test", 50):
        solution = one.problem().solution or ""
        ids = encode_completion(tokenizer, solution)
        assert len(ids) <= 60 + 20 * (len(one.work()[0]) > 3)
        assert tokenizer.decode(ids[:-1]) == solution and tokenizer.convert_ids_to_tokens(ids[-1]) == "<end>"
        tokens = tokenizer.tokenize(one.question + solution)
        assert [t for t in tokens if any(c.isdigit() for c in t)] == re.findall(r"\d", one.question + solution)
        prompt = hint_prompt(one.question, solution, solution, system="Solve it.", template=COMPACT_HINTS)
        expected = f"<system>Solve it.<end><user>{prompt[1]['content']}<end><assistant>"
        assert tokenizer.decode(encode_prompt(tokenizer, prompt)) == expected
    assert encode_prompt(tokenizer, question_prompt("é€😀"))[-1] == tokenizer.convert_tokens_to_ids("<assistant>")
    assert tokenizer.decode(tokenizer("é€😀")["input_ids"]) == "é€😀"
    assert tokenizer.pad_token == "<pad>" and end_tokens(tokenizer) == (tokenizer.eos_token_id,)


def test_the_tokenizer_needs_room_for_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size=100 must be at least 261"):
        train_tokenizer(tmp_path, size=100)
