"""The commands that README and pages tell a reader to type, and what becomes of each.

A line in a ``bash`` block
- without a mark is run by the tests in a shortened form: of the digits by tests/test_docs.py, of the generated problems
  ("arithmetic") by tests/cli, which go over the lines of the page of their method;
- marked "# needs a GPU", "# needs a server", "# needs an account" or "# downloads" must name a config and options that
  exist, if it is one of ours; tests/cli fit every config on tiny files;
- of ``SHELL`` is run as it stands, by CI or by the reader.
Indented commands, which stand above a table, have measured it, in minutes to hours: their options must exist.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKS = ("needs a GPU", "needs a server", "needs an account", "downloads")
SHELL = re.compile(r"make (demo|test|docs|lint)|pip install .+|for \w+ in .+; do|done.*")


@dataclass(frozen=True)
class Command:
    """A line without its comment; ``mark``: the words of ``MARKS`` in its comment, if any."""

    page: str
    text: str
    mark: str | None = None

    @property
    def words(self) -> list[str]:
        """What a shell passes on, with configs found from any folder."""
        return [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(self.text)]


def commands_of(page: Path) -> list[Command]:
    """Lines of the page's ``bash`` blocks, loops with the first of their values."""
    found, values = [], {}
    for line in "".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)).splitlines():
        text, _, comment = line.partition(" #")
        values |= dict(re.findall(r"for (\w+) in (\S+)", text))
        for name, value in values.items():
            text = text if text.startswith("for ") else text.replace(f"${name}", value)
        if text.strip():
            mark = next((mark for mark in MARKS if mark in comment), None)
            found.append(Command(page.name, text.strip(), mark))
    return found


def measured_by(page: Path) -> list[Command]:
    """Indented commands, with what is optional in them."""
    lines = re.findall(r"^    (?:OMP_NUM_THREADS=\d )?(python -m [^#\n]+)", page.read_text(), re.MULTILINE)
    return [Command(page.name, re.sub(r"[\[\]]", "", line).strip()) for line in lines]


COMMANDS = [command for page in PAGES for command in commands_of(page)]
MEASURED = [command for page in PAGES for command in measured_by(page)]


def unmarked(pattern: str, page: str | None = None) -> list[Command]:
    """Commands that the tests run, in order, each where it comes first."""
    found: dict[str, Command] = {}
    for command in COMMANDS:
        if command.mark is None and re.search(pattern, command.text) and page in (None, command.page):
            found.setdefault(command.text, command)
    return list(found.values())


def arithmetic_commands(page: str) -> list[list[str]]:
    """The words of the page's commands on generated problems, for the test of its configs."""
    return [command.words for command in unmarked("arithmetic", page)]
