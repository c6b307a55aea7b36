r"""What a teacher answered, read out of its reply: a text, a label, a final answer, or JSON, mended if need be.

Nothing that a model writes is an error here: a reply without an answer says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from lit_kd.language.accuracy import find_label
from lit_kd.language.answers import extract_answer

Parser = Literal["text", "label", "final", "json", "density"]


@dataclass(frozen=True)
class Reply:
    """What was read.

    Attributes:
        answer: What was asked for; None if it is not there.
        rationale: The reasoning before it; "" if there is none.
        reason: Why there is no answer, in a few words; None if there is one.
    """

    answer: str | None = None
    rationale: str = ""
    reason: str | None = None


def parse_reply(
    text: str,
    parser: Parser,
    *,
    answer_key: str = "answer",
    reason_key: str = "reason",
    labels: Sequence[str] = (),
) -> Reply:
    r"""Read a reply.

    Args:
        text: As the teacher wrote it; of one with ``</think>``, what follows it.
        parser: What it should be: "text" is all of it; "label" names one of ``labels``; "final" ends with
            ``\boxed{}``, ``####`` or "the answer is", behind the rationale; "json" is an object with two keys;
            "density" the list of a chain of density, whose last ``Denser_Summary`` counts.
        answer_key: Of the answer in the object.
        reason_key: Of the rationale in the object, which may be missing.
        labels: Answers that there are; () for any.

    Example:
        >>> parse_reply("```json\n{'reason': 'a cat is an animal', 'answer': 'yes'}\n``` Done.", "json")
        Reply(answer='yes', rationale='a cat is an animal', reason=None)
        >>> parse_reply("I can't tell.", "json").reason
        'no JSON'
        >>> parse_reply("The label is: Neutral.", "label", labels=["entailment", "neutral"]).answer
        'neutral'
    """
    text = text.rpartition("</think>")[2].strip()
    if not text:
        return Reply(reason="empty reply")
    readers: dict[str, Callable[[str], Reply]] = {
        "text": Reply,
        "label": Reply,
        "final": _final,
        "json": partial(_object, answer_key, reason_key),
        "density": _densest,
    }
    reply = readers[parser](text)
    if not labels or reply.answer is None:
        return reply
    label = find_label(reply.answer, labels)
    return Reply(reason="no label") if label is None else Reply(label, reply.rationale)


def read_json(text: str) -> Any:
    r"""The first object or list in a text, mended where it is not quite JSON; None: there is none.

    Fences, words around it, single quotes, and missing or surplus commas and brackets are forgiven. LaTeX that was not
    escaped, such as ``"\frac"``, which JSON reads as a form feed and "rac", is put right.

    Example:
        >>> read_json('Sure: {"reason": "half of \\boxed{4}", "answer": 2')
        {'reason': 'half of \\boxed{4}', 'answer': 2}
    """
    start = re.search(r"[{\[]", text)
    if start is None:
        return None
    text = text[start.start() :]
    try:
        found = json.JSONDecoder(strict=False).raw_decode(text)[0]
    except ValueError:
        found = _repaired(text)
    except RecursionError:  # thousands of brackets
        return None
    return _latex(found) if isinstance(found, (dict, list)) else None


def _repaired(text: str) -> Any:
    try:
        import json_repair
    except ImportError as error:
        raise ImportError("Mending JSON needs json-repair: pip install 'lit-kd[llm]'.") from error
    fenced = text.partition("```")[0]
    try:
        return json_repair.loads(re.sub(r'\\(?=[^"\\/bfnrtu])', r"\\\\", fenced))
    except RecursionError:
        return None


def _latex(value: Any) -> Any:
    """The same with the commands whose first letters JSON takes for control characters."""
    if isinstance(value, dict):
        return {key: _latex(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_latex(entry) for entry in value]
    if not isinstance(value, str):
        return value
    letters = {"\b": "b", "\f": "f", "\t": "t", "\r": "r"}
    return re.sub("[\b\f\t\r](?=[a-z])", lambda found: "\\" + letters[found[0]], value)


def _object(answer_key: str, reason_key: str, text: str) -> Reply:
    for found in _objects(read_json(text)):
        if (answer := _plain(found.get(answer_key))) is not None:
            return Reply(answer, _plain(found.get(reason_key)) or "")
    return Reply(reason="no JSON" if read_json(text) is None else f"no {answer_key!r} in the JSON")


def _densest(text: str) -> Reply:
    summaries = [_plain(found.get("Denser_Summary")) for found in _objects(read_json(text))]
    last = next((summary for summary in reversed(summaries) if summary is not None), None)
    if last is None:
        return Reply(reason="no JSON" if read_json(text) is None else "no 'Denser_Summary' in the JSON")
    return Reply(last)


def _final(text: str) -> Reply:
    answer = extract_answer(text).text
    if answer is None:
        return Reply(reason="no final answer")
    marks = re.finditer(r"\\boxed *\{|####|(?i:the (final )?answer is|answer:)", text)
    last = max((mark.start() for mark in marks), default=len(text))
    return Reply(answer, text[:last].rstrip())


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """The objects in what was read, at any depth, in order."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(part)


def _plain(value: Any) -> str | None:
    """A text or number as text; None for anything else, and for an empty text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return str(value).strip() or None
