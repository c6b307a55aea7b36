"""Griffe extension: the docstrings of this library in the dialect that mkdocstrings reads."""

import re
from pathlib import Path
from typing import Any

import griffe

FORMULA = re.compile(r"^( *)\.\. math:: (.+(?:\n\1 +\S.*)*)", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod):`~?([\w.]+)`")
OBJECT = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


class Docstrings(griffe.Extension):
    """``Example:`` is the section "Examples", formulas stand in dollars, roles become links."""

    def __init__(self) -> None:
        text = "\n".join(path.read_text() for path in Path(__file__).with_name("reference").glob("*.md"))
        self.targets = {name.rpartition(".")[2]: name for name in OBJECT.findall(text)}

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj``."""
        if obj.docstring:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = FORMULA.sub(r"\1$$\n\1\2\n\1$$", re.sub(r":math:`(.+?)`", r"$\1$", text))
            obj.docstring.value = ROLE.sub(lambda match: self._link(match[1].rpartition(".")[2]), text)

    def _link(self, name: str) -> str:
        return f"[`{name}`][{self.targets[name]}]" if name in self.targets else f"`{name}`"
