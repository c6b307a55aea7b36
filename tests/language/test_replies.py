"""What is read out of a teacher's reply, however it is written."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_kd.language.replies import Reply, parse_reply, read_json

GOOD = Reply("18", "it's 9 * 2")


@pytest.mark.parametrize(
    "text",
    [
        '{"reason": "it\'s 9 * 2", "answer": "18"}',
        '{"reason": "it\'s 9 * 2", "answer": 18}',
        '{"reason": "it\'s 9 * 2", "answer": 18.0}',
        '```json\n{"reason": "it\'s 9 * 2", "answer": "18"}\n```',
        '```\n{"reason": "it\'s 9 * 2", "answer": 18,}\n```\nI hope that {this} helps!',
        'Sure, here it is: {"reason": "it\'s 9 * 2", "answer": "18"} Anything else?',
        "{'reason': 'it's 9 * 2', 'answer': '18'}",
        '{"reason": "it\'s 9 * 2", "answer": "18"',
        '{"reason": "it\'s 9 * 2" "answer": "18"}',
        '<think>{"answer": 3}</think>\n{"reason": "it\'s 9 * 2", "answer": " 18 "}',
        '[{"reason": "it\'s 9 * 2", "answer": "18"}]',
    ],
)
def test_json_is_repaired(text: str) -> None:
    assert parse_reply(text, "json") == GOOD


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty reply"),
        ("The answer is 18.", "no JSON"),
        ('{"reason": "x"}', "no 'answer' in the JSON"),
        ('{"answer": ""}', "no 'answer' in the JSON"),
        ('{"answer": true}', "no 'answer' in the JSON"),
        ('{"answer": ["18"]}', "no 'answer' in the JSON"),
        ("[" * 5000, "no JSON"),
        ('{"answer":' * 5000, "no JSON"),
    ],
)
def test_what_is_beyond_repair_is_dropped_with_a_reason(text: str, reason: str) -> None:
    assert parse_reply(text, "json") == Reply(reason=reason)


@given(st.text(alphabet="{}[]\":, \\abfnrtu`'0", max_size=40))
def test_nothing_that_is_written_is_an_error(text: str) -> None:
    for parser in ("text", "label", "final", "json", "density"):
        reply = parse_reply(text, parser, labels=["a", "b"] if parser == "label" else ())
        assert (reply.answer is None) == (reply.reason is not None)


@given(st.dictionaries(st.text(max_size=5), st.text(alphabet=st.characters(exclude_characters="\b\f\t\r"))))
def test_good_json_is_as_it_is(value: dict[str, str]) -> None:
    assert read_json(f"so {json.dumps(value)} it is") == value


def test_latex_survives() -> None:
    text = r'{"reason": "\frac{1}{2} \times 4 = \boxed{2}, \sqrt{4} = 2, \rho", "answer": "2"}'
    assert parse_reply(text, "json").rationale == r"\frac{1}{2} \times 4 = \boxed{2}, \sqrt{4} = 2, \rho"
    escaped = json.dumps({"reason": r"\frac{1}{2} \times 4", "answer": "2"})
    assert parse_reply(escaped, "json").rationale == r"\frac{1}{2} \times 4"


def test_the_last_summary_of_a_chain_counts() -> None:
    chain = [{"Missing_Entities": f"{i}", "Denser_Summary": f"summary {i}"} for i in range(4)]
    assert parse_reply(json.dumps(chain), "density").answer == "summary 3"
    assert parse_reply(json.dumps({"summaries": chain}), "density").answer == "summary 3"
    assert parse_reply("\n".join(map(json.dumps, chain)), "density").answer in ("summary 0", "summary 3")
    assert parse_reply('[{"Missing_Entities": "a"}]', "density").reason == "no 'Denser_Summary' in the JSON"


def test_labels() -> None:
    three = ["entailment", "contradiction", "neutral"]
    for text in ("neutral", "Neutral.", "**Neutral**", "Answer: neutral", "It is neutral, I think.", "neutral: open"):
        assert parse_reply(text, "label", labels=three) == Reply("neutral"), text
    for text in ("neutral or contradiction", "maybe", "neutrally"):
        assert parse_reply(text, "label", labels=three) == Reply(reason="no label"), text
    settings: Any = {"answer_key": "answer_choice", "labels": ["C", "D"]}
    reply = parse_reply('{"reason": "r", "answer_choice": "(C)"}', "json", **settings)
    assert reply == Reply("C", "r")
    assert parse_reply('{"answer": "x"}', "json", labels=["C", "D"]) == Reply(reason="no label")


def test_final_answers() -> None:
    assert parse_reply("9 * 2 = 18\n\\boxed{18}", "final") == Reply("18", "9 * 2 = 18")
    assert parse_reply("9 * 2 = 18\n#### 18", "final") == Reply("18", "9 * 2 = 18")
    assert parse_reply("\\boxed{18}", "final") == Reply("18", "")
    assert parse_reply("Twice 9.\nThe answer is 18.", "final") == Reply("18", "Twice 9.")
    assert parse_reply("No dog sings. The answer is B.", "final", labels=["A", "B"]) == Reply("B", "No dog sings.")
    assert parse_reply("18", "final").reason == "no final answer"


def test_repairs_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = {"json_repair": None}
    monkeypatch.setitem(__import__("sys").modules, "json_repair", modules["json_repair"])
    assert parse_reply('{"answer": "1"}', "json").answer == "1"
    with pytest.raises(ImportError, match=re.escape("json-repair: pip install 'lit-kd[llm]'")):
        parse_reply("{'answer': '1'}", "json")
