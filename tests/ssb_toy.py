"""Stages of SSB on networks that can't solve anything: rows are marked as if they had."""

import json
from pathlib import Path
from typing import Any

from lit_kd.language.records import read_records


def rewrite(folder: str | Path, change: Any) -> None:
    """Let `change` edit each row of the first process' file."""
    rows = read_records(folder)
    for row in rows:
        change(row)
    (Path(folder) / "rows-00000.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_if_answered(folder: str | Path) -> None:
    """The first answer to each problem was right, the second one wrong."""

    def change(row: dict[str, Any]) -> None:
        row["answers"][0].update(answer=row["gold"], right=True, finish_reason="stop")
        row["answers"][1].update(answer="-1", right=False, finish_reason="stop")

    rewrite(folder, change)


def as_if_accepted(folder: str | Path) -> None:
    """Every solution was accepted."""
    rewrite(folder, lambda row: row.update(reason=None))
