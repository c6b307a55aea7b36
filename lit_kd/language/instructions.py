"""Instructions with responses: rows in the format of Dolly or Alpaca, and the prompts made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_kd.language.chat import Prompt

_REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
_ALONE = "Below is an instruction that describes a task. " + _REQUEST + "### Response:\n"
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    + _REQUEST
    + "### Input:\n{input}\n\n### Response:\n"
)
_NAMES = {"input": ("input", "context"), "responses": ("output", "response")}  # Alpaca's and MiniLLM's, Dolly's


@dataclass(frozen=True)
class Instruction:
    """What somebody asks, and what may be answered.

    Attributes:
        instruction: The request.
        input: What it is about; "": nothing.
        responses: One text to train on, or references to compare with.
    """

    instruction: str
    input: str
    responses: tuple[str, ...]


def read_instruction(row: Mapping[str, Any]) -> Instruction:
    """One row: ``instruction``, ``context`` or ``input``, ``response`` or ``output``, which may be a list of texts.

    Texts stay as they are, but for an input of blanks, which is none.

    Raises:
        ValueError: a column is missing or has no text.

    Example:
        >>> read_instruction({"instruction": "Add.", "context": "1 and 2", "response": "3", "category": "closed_qa"})
        Instruction(instruction='Add.', input='1 and 2', responses=('3',))
    """
    instruction, about, given = row.get("instruction"), _first(row, "input") or "", _first(row, "responses")
    responses = given if isinstance(given, list) else [given]
    columns = f"the columns are {', '.join(row) or 'none'}"
    if not isinstance(instruction, str) or not instruction.strip():
        raise ValueError(f"'instruction' must be a text, got {instruction!r}; {columns}")
    if not isinstance(about, str):
        raise ValueError(f"'input' (or 'context') must be a text, got {about!r}")
    if not all(isinstance(text, str) for text in responses) or not any(text.strip() for text in responses):
        raise ValueError(f"'output' (or 'response') must be a text or a list of texts, got {given!r}; {columns}")
    return Instruction(instruction, about if about.strip() else "", tuple(responses))


def alpaca_prompt(row: Instruction) -> str:
    """The text of Stanford Alpaca, which MiniLLM (arXiv:2306.08543) and DistiLLM use, with and without an input.

    Example:
        >>> print(alpaca_prompt(Instruction("Name a colour.", "", ("Red",))), end="")
        Below is an instruction that describes a task. Write a response that appropriately completes the request.
        <BLANKLINE>
        ### Instruction:
        Name a colour.
        <BLANKLINE>
        ### Response:
    """
    template = _WITH_INPUT if row.input else _ALONE
    return template.format(instruction=row.instruction, input=row.input)


def chat_prompt(row: Instruction) -> Prompt:
    r"""One message of the user's, for a tokenizer with a chat template.

    Example:
        >>> chat_prompt(Instruction("Add.", "1 and 2", ("3",)))
        [{'role': 'user', 'content': 'Add.\n\n1 and 2'}]
    """
    content = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    return [{"role": "user", "content": content}]


def _first(row: Mapping[str, Any], name: str) -> Any:
    return next((row[column] for column in _NAMES[name] if row.get(column) is not None), None)
