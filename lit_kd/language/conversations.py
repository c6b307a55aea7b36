"""Chats to train on: files of them, what they must look like, and every assistant turn of them as a completion."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_kd.language.chat import Message, encode_completion, encode_prompt
from lit_kd.language.records import numbered_lines, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Turns:
    """A row with several completions: token ids, and for each whether it is learnt."""

    ids: list[int]
    learnt: list[int]  # 0 or 1


def read_chats(source: str, system_required: bool = True) -> list[list[Message]]:
    """The messages of each row in a JSONL file, or in a folder that :class:`lit_kd.methods.Synthesis` has written.

    Of a folder, rows with a ``reason`` not to train on them are left out.

    Raises:
        FileNotFoundError: there is no such file, or no manifest in the folder.
        ValueError: a line is no chat to train on: a system message, unless it may be missing, then user and assistant
            in turns, the assistant last, none of them empty; there is no row.
    """
    path = Path(source)
    if path.is_file():
        numbered = [(number, _parsed(source, number, line)) for number, line in numbered_lines(path)]
    elif path.is_dir():
        numbered = [(row["index"], row) for row in read_records(path) if row.get("reason") is None]
    else:
        raise FileNotFoundError(f"There is no file or folder {source}: give chats as a JSONL file or a folder.")
    if not numbered:
        raise ValueError(f"{source} holds no chat to train on.")
    for number, row in numbered:
        fault = fault_of(row.get("messages"), system_required)
        if fault is not None:
            raise ValueError(f"Row {number} of {source} {fault}.")
    return [row["messages"] for _, row in numbered]


def _parsed(source: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # bytes that are not UTF-8, too
        raise ValueError(f"Row {number} of {source} is no JSON: {error}.") from error
    if not isinstance(row, dict):
        raise ValueError(f'Row {number} of {source} is no object with "messages".')
    return row


def fault_of(messages: Any, system_required: bool = True) -> str | None:
    """Why messages are no chat to train on, as the end of a sentence about them; None: they are one.

    Example:
        >>> chat = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
        >>> fault_of(chat, system_required=False) is None
        True
        >>> fault_of(chat)
        'has no system message first: add one, or say system_required=False'
    """
    if not isinstance(messages, list) or not messages:
        return 'has no list "messages" of role and content'
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            return "has a message without role and text content"
        if not message["content"].strip():
            return f"has an empty message of the role {message['role']}"
    roles = [message["role"] for message in messages]
    if system_required and roles[0] != "system":
        return "has no system message first: add one, or say system_required=False"
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        return (
            f"has the roles {', '.join(roles)}: behind the system message user and assistant must take turns, and the "
            "last turn is the assistant's"
        )
    return None


def turns_of(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Turns]:
    """Every assistant turn as a completion behind exactly the ids that generation would start from.

    A turn goes into the row of the turns before it where the prompt of it, as the template renders the history, begins
    with that row's ids. Where it does not (a template that drops earlier thoughts or trims them, a tokenizer that joins
    an answer with what is around it) it gets a row of its own, with the history as prompt.
    """
    rows: list[Turns] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = encode_prompt(tokenizer, messages[:place])
        completion = encode_completion(tokenizer, message["content"])
        before = rows[-1] if rows and prompt[: len(rows[-1].ids)] == rows[-1].ids else None
        learnt = [] if before is None else before.learnt
        row = Turns(prompt + completion, learnt + [0] * (len(prompt) - len(learnt)) + [1] * len(completion))
        rows = [*rows, row] if before is None else [*rows[:-1], row]
    return rows
