"""Training rows by a teacher: what the student will see, what is dropped and why, and that nothing is lost."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_toy import causal, saved
from synthesis_toy import Teacher, own_task, write_rows
from toy import quiet_trainer

from lit_kd.datamodules import ArithmeticDataModule, TaskDataModule
from lit_kd.language.engines import Sampling
from lit_kd.language.records import read_manifest, read_records
from lit_kd.methods import Synthesis
from lit_kd.models import causal_lm


def question(chat: Any) -> str:
    return chat[-1]["content"].removeprefix("Q: ")


def add(chat: Any, sampling: Any) -> str:
    """As a teacher who can add and was told to reason."""
    return json.dumps({"reason": f"I add {question(chat)}.", "answer": eval(question(chat))})


SUMS = [{"question": f"{i} + {i * i}", "answer": str(i + i * i)} for i in range(10)]


def write(
    folder: Path, teacher: Any, rows: Any = None, data: dict[str, Any] | None = None, **settings: Any
) -> list[Any]:
    """Rows that a teacher writes in the folder `out`."""
    settings = {"min_success": 0.0, **settings}
    root = write_rows(folder / "data" / "train.jsonl", SUMS if rows is None else rows)
    defaults = {"task": own_task(folder), "mode": "cot", "root": root, "eval_batch_size": 4, "duplicates": None}
    module = Synthesis(str(folder / "out"), engine=teacher, **settings)
    quiet_trainer().predict(module, TaskDataModule(**{**defaults, **(data or {})}))
    return read_records(folder / "out")


def test_rows_have_the_plain_prompt_and_the_answer_alone(tmp_path: Path) -> None:
    teacher = Teacher(add)
    rows = write(tmp_path, teacher)
    assert [row["index"] for row in rows] == list(range(10))
    assert rows[3]["messages"] == [
        {"role": "system", "content": "Give the number."},
        {"role": "user", "content": "Q: 3 + 9"},
        {"role": "assistant", "content": "12"},
    ]
    assert all(row["reason"] is None and row["requests"] == row["attempts"] == 1 for row in rows)
    assert {chat[0]["content"] for chat in teacher.chats} == {"Think first. Reply in JSON."}
    manifest = read_manifest(tmp_path / "out")
    assert manifest["sampling"]["max_new_tokens"] == 9 and manifest["target"] == "answer"
    assert manifest["data"]["mode"] == "cot" and len(manifest["data"]["prompts"]) == 16


def test_the_rationale_may_be_kept(tmp_path: Path) -> None:
    rows = write(tmp_path, Teacher(add), target="rationale+answer")
    assert rows[3]["messages"][-1]["content"] == "I add 3 + 9. So 12"
    bare = Teacher(lambda chat, sampling: '{"answer": 1}')
    with pytest.raises(ValueError, match="10 no rationale"):
        write(tmp_path / "bare", bare, target="rationale+answer", check_gold=False)


def test_replies_are_repaired_or_dropped(tmp_path: Path) -> None:
    replies = {
        "0 + 0": '```json\n{"reason": "r", "answer": 0}\n```',
        "1 + 1": "{'reason': 'r', 'answer': 2} Is that all?",
        "2 + 4": '{"reason": "r", "answer": 6',
        "3 + 9": "It is 12.",
        "4 + 16": '{"reason": "r"}',
        "5 + 25": '{"reason": "r", "answer": 31}',
    }
    teacher = Teacher(lambda chat, _: replies.get(question(chat)) or add(chat, _), {"6 + 36": "length"})
    rows = write(tmp_path, teacher, attempts=3)
    reasons = ["no JSON", "no 'answer' in the JSON", "wrong answer", "finish reason length"]
    assert [row["reason"] for row in rows] == [None] * 3 + reasons + [None] * 3
    assert [row["requests"] for row in rows] == [1] * 3 + [3] * 4 + [1] * 3
    assert rows[2]["messages"][-1]["content"] == "6" and rows[3]["reply"] == "It is 12."
    assert all(row["messages"][-1]["role"] == "user" for row in rows if row["reason"] is not None)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report == {
        "task": "sums",
        "mode": "cot",
        "target": "answer",
        "inputs": 10,
        "kept": 6,
        "asked": 10,
        "unanswered": 0,
        "success": 0.7,  # a wrong answer is one
        "dropped": dict.fromkeys(sorted(reasons), 1),
        "requests": 18,
        "prompt_tokens": 180,
        "completion_tokens": sum(row["completion_tokens"] for row in rows),
    }
    table = (tmp_path / "out/report.md").read_text()
    assert "| dropped: wrong answer | 1 |" in table and "| success | 70.0% |" in table


def test_another_draw_may_be_right(tmp_path: Path) -> None:
    def second(chat: Any, sampling: Sampling) -> str:
        return add(chat, sampling) if sampling.seed == 8 else "no idea"

    rows = write(tmp_path, Teacher(second), sampling=Sampling(seed=7))
    assert all(row["reason"] is None and row["attempts"] == row["requests"] == 2 for row in rows)
    assert rows[0]["prompt_tokens"] == 20


def test_gold_and_length_are_checked_on_demand(tmp_path: Path) -> None:
    wrong = Teacher(lambda chat, sampling: '{"reason": "a b c", "answer": 1000}')
    rows = write(tmp_path / "a", wrong, check_gold=False)
    assert all(row["messages"][-1]["content"] == "1000" and row["reason"] is None for row in rows)
    rows = write(tmp_path / "b", wrong, check_gold=False, target="rationale+answer", max_words=4)
    assert all(row["reason"] == "too long" for row in rows)
    rows = write(tmp_path / "c", wrong, check_gold=False, min_words=2)
    assert all(row["reason"] == "too short" for row in rows)
    rows = write(tmp_path / "d", wrong, [{"question": "1 + 1"}])  # no gold: nothing to check
    assert rows[0]["reason"] is None


def test_the_last_summary_is_kept(tmp_path: Path) -> None:
    chain = [{"Missing_Entities": "x", "Denser_Summary": f"Summary {i}."} for i in range(4)]
    teacher = Teacher(lambda chat, sampling: json.dumps(chain))
    data = {"task": "summarization", "mode": "cod"}
    (row,) = write(tmp_path, teacher, [{"article": "A story.", "highlights": "Story."}], data)
    assert row["messages"][-1]["content"] == "Summary 3." and "4 times" not in row["messages"][0]["content"]
    assert read_manifest(tmp_path / "out")["sampling"]["max_new_tokens"] == 1024


def conversation(*turns: str, system: str = "Be kind.") -> dict[str, Any]:
    roles = ["user", "assistant"] * len(turns)
    messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    return {"messages": [{"role": "system", "content": system}, *messages]}


def test_conversations_are_written_anew_from_left_to_right(tmp_path: Path) -> None:
    teacher = Teacher(lambda chat, sampling: f"new {len(chat)} to {question(chat)}", {"cut": "length"})
    chats = [
        conversation("one", "old", "two", "old", "three", "old"),
        conversation("one", "old", system="Be curt."),
        conversation("one", "old", "cut", "old", "three", "old"),
    ]
    rows = write(tmp_path, teacher, chats, {"task": "conversation", "mode": "plain"})
    turns = ["one", "new 2 to one", "two", "new 4 to two", "three", "new 6 to three"]
    assert [message["content"] for message in rows[0]["messages"]] == ["Be kind.", *turns]
    assert [message["role"] for message in rows[0]["messages"]] == ["system", *["user", "assistant"] * 3]
    assert [message["content"] for message in rows[1]["messages"]] == ["Be curt.", "one", "new 2 to one"]
    assert rows[2]["reason"] == "finish reason length" and rows[2]["requests"] == 3
    asked = [[message["content"] for message in chat] for chat in teacher.chats]
    assert ["Be kind.", *turns[:5]] in asked and not any("old" in words for words in asked)


def test_equal_messages_stay_apart(tmp_path: Path) -> None:
    chats = [conversation("same", "x", system=f"You are {name}.") for name in ("Ann", "Bob")]
    teacher = Teacher(lambda chat, sampling: chat[0]["content"])
    data = {"task": "conversation", "mode": "plain", "duplicates": 0.9}
    rows = write(tmp_path, teacher, chats, data)
    assert [row["messages"][0]["content"] for row in rows] == ["You are Ann.", "You are Bob."]
    assert [row["messages"][-1]["content"] for row in rows] == ["You are Ann.", "You are Bob."]


def test_what_repeats_or_is_evaluated_is_not_asked(tmp_path: Path) -> None:
    teacher = Teacher(add)
    rows = write(tmp_path, teacher, [SUMS[1], SUMS[2], SUMS[1]], {"duplicates": 1.0, "evaluation": ["2 + 4"]})
    assert [row["reason"] for row in rows] == [None, "contaminated: evaluation 0", "near-duplicate: of 0"]
    assert len(teacher.chats) == 1
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["asked"], report["success"]) == (1, 1.0)
    assert report["dropped"] == {"contaminated": 1, "near-duplicate": 1}


def test_too_few_answers_are_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    def half(chat: Any, sampling: Sampling) -> str:
        return add(chat, sampling) if int(question(chat)[0]) < 4 else "I would rather not."

    sentence = r"Only 40\.0% of 10 inputs have a reply with an answer, fewer than min_success=0\.7: 6 no JSON; the "
    with pytest.raises(ValueError, match=f"{sentence}reply to input 4 is 'I would rather not.'. All rows and the rep"):
        write(tmp_path, Teacher(half), min_success=0.7)
    assert json.loads((tmp_path / "out/report.json").read_text())["kept"] == 4
    silent = Teacher(half)
    assert len(write(tmp_path, silent, min_success=0.4)) == 10 and not silent.chats


def test_a_parser_that_matches_nothing_ends_the_run_at_once(tmp_path: Path) -> None:
    teacher = Teacher(lambda chat, sampling: "Dear user, 12.")
    sentence = re.escape(
        "The parser 'json' of task 'sums', mode 'cot', found an answer in none of 8 replies (8 no JSON); the reply to "
        "input 0 is 'Dear user, 12.'."
    )
    with pytest.raises(ValueError, match=sentence):
        write(tmp_path, teacher, SUMS + SUMS[:6], data={"eval_batch_size": 8}, attempts=1)
    assert len(teacher.chats) == 8
    with pytest.raises(ValueError, match="none of 3 replies"):  # too few to tell before the end
        write(tmp_path / "few", teacher, SUMS[:3], attempts=1)


def test_what_a_server_failed_to_answer_is_asked_again_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Only 60\.0% of 10 inputs .*: 4 unanswered"):
        write(tmp_path, Teacher(add, {"1": "error", "64": "error"}), min_success=0.7)
    rows = read_records(tmp_path / "out")
    assert [row["index"] for row in rows] == [0, 2, 3, 5, 6, 7]
    again = Teacher(add)
    assert [row["messages"][-1]["content"] for row in write(tmp_path, again)] == [row["answer"] for row in SUMS]
    assert [question(chat) for chat in again.chats] == ["1 + 1", "4 + 16", "8 + 64", "9 + 81"]
    with pytest.raises(ValueError, match="Only 0.0% of 10 inputs .*: 10 unanswered"):
        write(tmp_path / "none", Teacher(add, {"": "error"}), min_success=0.7)


def test_a_killed_run_goes_on_to_the_same_file(tmp_path: Path) -> None:
    write(tmp_path, Teacher(add))
    file = tmp_path / "out/rows-00000.jsonl"
    content, report = file.read_bytes(), (tmp_path / "out/report.json").read_bytes()
    lines = content.splitlines(keepends=True)
    for whole in (0, 3, 4, 9):
        file.write_bytes(b"".join(lines[:whole]) + lines[whole][:20])
        again = Teacher(add)
        write(tmp_path, again)
        assert file.read_bytes() == content and (tmp_path / "out/report.json").read_bytes() == report
        assert len(again.chats) == 10 - whole
    for changes in ({"target": "rationale+answer"}, {"sampling": Sampling(5)}, {"rows": SUMS[1:]}):
        with pytest.raises(ValueError, match="give another folder"):
            write(tmp_path, Teacher(add), **changes)
    more = Teacher(add)
    write(tmp_path / "part", more, data={"limit": 3})
    write(tmp_path / "part", more, data={"limit": 5})
    assert len(more.chats) == 5


def test_a_network_of_ours_as_the_teacher(tmp_path: Path) -> None:
    path = saved(tmp_path / "base", causal(max_position_embeddings=2048))
    problems = ArithmeticDataModule(tokenizer="", samples=3)
    module = Synthesis(str(tmp_path / "out"), Sampling(3), attempts=1, network=causal_lm(path))
    with pytest.raises(ValueError, match="found an answer in none of 3 replies"):
        quiet_trainer().predict(module, TaskDataModule(task="math", mode="cot", problems=problems))
    rows = read_records(tmp_path / "out")
    assert all(row["reason"] is not None and 1 <= row["completion_tokens"] <= 3 for row in rows)
    assert read_manifest(tmp_path / "out")["engine"]["weights"]


def test_other_data(tmp_path: Path) -> None:
    module = Synthesis(str(tmp_path / "out"), engine=Teacher(add))
    with pytest.raises(ValueError, match="ArithmeticDataModule is no TaskDataModule"):
        quiet_trainer().predict(module, ArithmeticDataModule(tokenizer="", samples=3))
    with pytest.raises(ValueError, match=r"target='rationale\+answer' is none of the task 'conversation'"):
        write(tmp_path, Teacher(add), [conversation("a", "b")], {"task": "conversation", "mode": "plain"},
              target="rationale+answer")  # fmt: skip
