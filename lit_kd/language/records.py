"""What long stages write: JSON lines that survive a kill, beside a manifest that says how they were made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_kd.files import replacing, writing

MANIFEST = "manifest.json"
Row = dict[str, Any]  # "index" tells rows apart


class Records:
    """One process' append-only file in a folder of JSON lines, and what all processes have written there.

    A row is told by its ``index``, and one that any process has written is ``done``; one that a kill has cut short is
    removed when the folder is next opened. The file is ``rows-<rank>.jsonl``.

    Args:
        folder: made if it is missing.
        manifest: plain values that decide on the rows; a folder written under another manifest is refused.
        rank: of this process.

    Attributes:
        done: indices that are written.

    Raises:
        ValueError: the folder holds rows of another manifest.

    Example:
        >>> records = Records("rollouts", {"model": "tiny", "seed": 0})
        >>> records.append([{"index": 3, "text": "7"}, {"index": 5, "text": "8"}])
        >>> Records("rollouts", {"model": "tiny", "seed": 0}).done == {3, 5}
        True
        >>> Records("rollouts", {"model": "tiny", "seed": 1})
        Traceback (most recent call last):
        ValueError: rollouts was written with seed 0, not 1: give another folder.
    """

    def __init__(self, folder: str | Path, manifest: dict[str, Any], rank: int = 0) -> None:
        self.folder = Path(folder)
        manifest = json.loads(json.dumps(manifest))  # tuples become lists, as they are read back
        if not (self.folder / MANIFEST).is_file():
            with replacing(self.folder / MANIFEST) as temporary:
                temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        check_manifest(self.folder, manifest)
        self.done = {row["index"] for row in _rows(self.folder)}
        self._path = self.folder / f"rows-{rank:05d}.jsonl"
        if self._path.is_file():
            whole = self._path.read_bytes().rfind(b"\n") + 1
            os.truncate(self._path, whole)

    def append(self, rows: Iterable[Row]) -> None:
        """Write rows that are not there yet."""
        rows = [row for row in rows if row["index"] not in self.done]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with writing(self._path), self._path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self.done |= {row["index"] for row in rows}


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """How the rows of a folder were made.

    Raises:
        FileNotFoundError: it is no such folder.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {MANIFEST}: give the folder that the stage before has written.")
    return json.loads(path.read_text(encoding="utf-8"))


def check_manifest(folder: str | Path, expected: dict[str, Any]) -> None:
    """Raise a ValueError that names the first entry of `expected` which the folder's manifest has otherwise."""
    found = read_manifest(folder)
    for name, value in expected.items():
        if found.get(name) != value:
            raise ValueError(
                f"{folder} was written with {name} {found.get(name)!r}, not {value!r}: give another folder."
            )


def read_records(folder: str | Path) -> list[Row]:
    """All rows of a folder in the order of ``index``.

    Raises:
        FileNotFoundError: it is no such folder.
        ValueError: it holds no row.
    """
    read_manifest(folder)
    rows = {row["index"]: row for row in _rows(Path(folder))}
    if not rows:
        raise ValueError(f"{folder} holds no row yet: run the stage that writes it.")
    return [rows[index] for index in sorted(rows)]


def numbered_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and bytes of each line of a JSONL file that is not blank."""
    # Split by hand: str.splitlines knows more ends of lines than JSON escapes.
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if line.strip():
            yield number, line


def fingerprint(value: Any) -> str:
    """Of plain values that are too long for a manifest."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _rows(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.glob("rows-*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):  # else it is being written, or was when the process died
                yield json.loads(line)
