"""Tasks of distillation through synthetic data: what a student is asked, what a teacher is told, what comes back.

Structure after Shirgaonkar et al., arXiv:2410.18588, as its group ships it; all words are ours. A task is a YAML file,
one of ours in ``lit_kd/tasks`` or a user's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lit_kd.language.answers import answers_match, gsm8k_gold
from lit_kd.language.canonical import canonical_number
from lit_kd.language.chat import Message
from lit_kd.language.replies import Parser, Reply, parse_reply

Check = Literal["number", "math", "label", "none"]
Metric = Literal["number", "math", "label", "overlap", "summary"]
Target = Literal["answer", "rationale+answer"]
FOLDER = Path(__file__).parents[1] / "tasks"


@dataclass(frozen=True)
class Mode:
    """How a teacher is asked, and how its reply is read.

    Attributes:
        system: Its system prompt, with ``{words}`` for the task's number of words; None: the student's own.
        parser: See :func:`lit_kd.language.replies.parse_reply`; likewise the two keys.
        answer_key: Of the answer in JSON.
        reason_key: Of the rationale in JSON.
        sampling: Entries of :class:`lit_kd.language.engines.Sampling` for this mode.
    """

    system: str | None = None
    parser: Parser = "text"
    answer_key: str = "answer"
    reason_key: str = "reason"
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    r"""What is asked, in which words, and what counts as an answer.

    Attributes:
        name: Of the file.
        system: The plain system prompt: what the student sees, and what every training row has. None for conversations,
            which bring their own.
        user: The user's message, with a ``{place}`` for each of the columns; None for conversations.
        columns: The data's column for each place, and for ``gold``; for conversations that of ``messages``.
        modes: By name: "plain" and, where there are more, "cot" (chain of thought in JSON, for a teacher), "steps" (the
            same as text) and "cod" (chain of density).
        labels: Answers that there are; () for any.
        label_names: What values of the gold column mean, such as {"0": "entailment"}.
        check: How answers are compared with the gold ones, if at all.
        metric: Of a test.
        words: Number that prompts of modes may speak of.
        targets: The assistant's message, with ``{answer}`` and ``{rationale}``, for the targets that there are.
        hub: Where ``datasets`` finds examples: ``name``, ``config``, and what ``train`` and ``test`` are there.
    """

    name: str
    modes: Mapping[str, Mode]
    columns: Mapping[str, str]
    system: str | None = None
    user: str | None = None
    labels: Sequence[str] = ()
    label_names: Mapping[str, str] = field(default_factory=dict)
    check: Check = "none"
    metric: Metric = "overlap"
    words: int = 80
    targets: Mapping[str, str] = field(default_factory=lambda: {"answer": "{answer}"})
    hub: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"The task {self.name!r}"
        if "plain" not in self.modes:
            raise ValueError(f"{where} has no mode 'plain': what the student is asked, and how its answer is read.")
        for mode in self.modes.values():
            if mode.parser not in get_args(Parser):
                raise ValueError(f"{where} has the parser {mode.parser!r}: take one of {', '.join(get_args(Parser))}.")
        for name, known in (("check", Check), ("metric", Metric)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{where} has {name} {getattr(self, name)!r}: take {', '.join(get_args(known))}.")
        if "answer" not in self.targets or not self.targets.keys() <= set(get_args(Target)):
            raise ValueError(f"{where} has targets {list(self.targets)}: give 'answer', and 'rationale+answer' or not.")
        if self.conversation:
            return
        if not (self.system or "").strip():
            raise ValueError(f"{where} has no system message: set 'system', which the student sees and rows are given.")
        places = self.columns.keys() - {"gold"}
        if self.user is None or not places or any(f"{{{place}}}" not in self.user for place in places):
            raise ValueError(f"{where} needs a 'user' message with the places {', '.join(sorted(places)) or '...'}.")
        if self.check != "none" and "gold" not in self.columns:
            raise ValueError(f"{where} has check {self.check!r} and no column for 'gold': name it, or check none.")

    @property
    def conversation(self) -> bool:
        """Whether examples are chats of several turns."""
        return "messages" in self.columns

    def mode(self, name: str) -> Mode:
        """One of the modes.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self.modes:
            raise ValueError(f"mode={name!r} is none of the task {self.name!r}: take {', '.join(self.modes)}.")
        return self.modes[name]

    def values(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What stands at the places, as text.

        Raises:
            ValueError: the row lacks a column.
        """
        places = {place: column for place, column in self.columns.items() if place not in ("gold", "messages")}
        missing = [column for column in places.values() if row.get(column) is None]
        if missing:
            raise ValueError(
                f"it has no column {missing[0]!r} but {', '.join(row) or 'none'}: say by columns where the task "
                f"{self.name!r} finds {', '.join(places)}"
            )
        return {place: _text(row[column]) for place, column in places.items()}

    def plain(self, row: Mapping[str, Any]) -> list[Message]:
        """The chat that the student sees.

        Raises:
            ValueError: as `values`.
        """
        user = fill(str(self.user), self.values(row))
        return [{"role": "system", "content": str(self.system)}, {"role": "user", "content": user}]

    def gold(self, row: Mapping[str, Any]) -> str | None:
        """The right answer; None: the row has none.

        Raises:
            ValueError: it is none of the labels, or no number where answers are compared as such.
        """
        value = row.get(self.columns.get("gold", ""))
        if value is None or not str(value).strip():
            return None
        text = str(value).strip()
        gold = gsm8k_gold(text) if self.check == "number" and "####" in text else self.label_names.get(text, text)
        if self.labels and gold not in self.labels:
            raise ValueError(f"its gold answer {gold!r} is none of the labels {', '.join(self.labels)}")
        if self.check == "number" and canonical_number(gold) is None:
            raise ValueError(f"its gold answer {gold!r} is no number")
        return gold

    def told(self, mode: str, chat: Sequence[Message]) -> list[Message]:
        """A chat with the mode's system message in the place of its own."""
        system = self.mode(mode).system
        if system is None:
            return list(chat)
        return [{"role": "system", "content": fill(system, {"words": str(self.words)})}, *chat[1:]]

    def read(self, mode: str, text: str) -> Reply:
        """A reply to a chat of that mode."""
        how = self.mode(mode)
        keys = {"answer_key": how.answer_key, "reason_key": how.reason_key}
        return parse_reply(text, how.parser, labels=self.labels, **keys)

    def target(self, name: str, reply: Reply) -> str:
        """What the student learns to say.

        Raises:
            ValueError: the task has no such target.
        """
        if name not in self.targets:
            raise ValueError(f"target={name!r} is none of the task {self.name!r}: take {', '.join(self.targets)}.")
        return fill(self.targets[name], {"answer": reply.answer or "", "rationale": reply.rationale}).strip()

    def right(self, answer: str, gold: str | None) -> bool:
        """Whether an answer is the gold one; yes where there is none to compare with."""
        if gold is None or self.check == "none":
            return True
        if self.check == "label":
            return answer.casefold() == gold.casefold()
        return answers_match(answer, gold, self.check)


def read_task(name: str) -> Task:
    """A task of ours by its name, or one in a YAML file by its path.

    Raises:
        ValueError: there is none of that name; it has an entry that tasks do not have, or lacks one.
        FileNotFoundError: there is no such file.

    Example:
        >>> read_task("nli").labels
        ['entailment', 'contradiction', 'neutral']
        >>> read_task("poetry")
        Traceback (most recent call last):
        ValueError: task='poetry' is unknown: take conversation, math, nli, nlu_qa, summarization, or give a YAML file.
    """
    import yaml

    known = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in known:
        raise ValueError(f"task={name!r} is unknown: take {', '.join(known)}, or give a YAML file.")
    path = Path(name) if own else known[name]
    if not path.is_file():
        raise FileNotFoundError(f"task={name!r} does not exist.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("modes"), dict):
        raise ValueError(f"{path} is no task: it needs at least modes and columns.")
    modes = {
        mode: Mode(**_entries(path, Mode, {} if entries is None else entries))
        for mode, entries in content["modes"].items()
    }
    content["label_names"] = {str(key): value for key, value in content.get("label_names", {}).items()}
    return Task(**_entries(path, Task, {"name": path.stem, **content, "modes": modes}))


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template whose places are filled; braces of other words stay.

    Example:
        >>> fill('Is {a} in {"list": {a}}?', {"a": "{b}", "b": "x"})
        'Is {b} in {"list": {b}}?'
    """
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda found: values[found[1]], template) if values else template


def _entries(path: Path, kind: type, entries: Any) -> dict[str, Any]:
    known = [each.name for each in fields(kind)]
    strange = [name for name in entries if name not in known] if isinstance(entries, dict) else ["..."]
    if strange:
        raise ValueError(f"{path} has an entry {strange[0]!r} that a {kind.__name__} does not: {', '.join(known)}.")
    if kind is Task and "columns" not in entries:
        raise ValueError(f"{path} is no task: it needs at least modes and columns.")
    return dict(entries)


def _text(value: Any) -> str:
    """A value of a column; choices ({"label": [...], "text": [...]} or a list) become lettered lines."""
    if isinstance(value, dict) and {"label", "text"} <= value.keys():
        return "\n".join(f"{letter}. {text}" for letter, text in zip(value["label"], value["text"], strict=True))
    if isinstance(value, (list, tuple)):
        return "\n".join(f"{chr(65 + number)}. {text}" for number, text in enumerate(value))
    return str(value).strip()
