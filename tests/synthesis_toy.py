"""Teachers with answers by heart, and tasks in files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lit_kd.language.engines import Completion, Engine, Sampling

Answer = Callable[[list[dict[str, str]], Sampling], str]


class Teacher(Engine):
    """Answers a chat by a function; keeps what it was asked."""

    def __init__(self, answer: Answer, reasons: dict[str, Any] | None = None) -> None:
        self.answer, self.reasons = answer, reasons or {}
        self.chats: list[list[dict[str, str]]] = []

    def generate(self, prompts: Any, sampling: Sampling, keys: Any = None, budgets: Any = None) -> Any:
        found = []
        for chat in prompts:
            self.chats.append([dict(message) for message in chat])
            reason = next((why for word, why in self.reasons.items() if word in chat[-1]["content"]), "stop")
            text = "" if reason == "error" else self.answer(chat, sampling)
            found.append([Completion(text, reason, None, 10, len(text.split()))])
        return found

    def describe(self) -> dict[str, Any]:
        return {"kind": "by heart"}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    """A JSONL file; its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path.parent)


def own_task(folder: Path, **changes: Any) -> str:
    """A user's task: questions with numbers."""
    content: dict[str, Any] = {
        "system": "Give the number.",
        "user": "Q: {q}",
        "columns": {"q": "question", "gold": "answer"},
        "check": "number",
        "metric": "number",
        "modes": {
            "plain": {"parser": "final"},
            "cot": {"system": "Think first. Reply in JSON.", "parser": "json", "sampling": {"max_new_tokens": 9}},
        },
        "targets": {"answer": "{answer}", "rationale+answer": "{rationale} So {answer}"},
    }
    path = folder / "sums.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return str(path)
