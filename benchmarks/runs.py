"""What benchmarks that take hours share: each finished run leaves a file and is not run again."""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_kd.files import replacing


def once(out: Path, name: str, start: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The numbers of the run ``name``: from ``out/<name>.json``, or of a new run, which are printed and kept there."""
    path = out / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    numbers = start()
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(numbers, indent=2))
    print(name, json.dumps({key: round(value, 4) for key, value in numbers.items()}), flush=True)
    return numbers


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, standard deviation; "-" of none."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"
