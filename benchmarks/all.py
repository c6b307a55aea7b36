"""Every method's step beside a bare PyTorch loop: time, what of it goes to data, peak memory; one table.

    python -m benchmarks.all [--quick] [--only NAME ...] [--device cuda] [--out FILE.json]

The loop has the same networks, batches and optimizer and its loss is written in plain PyTorch; it ends with the same
weights, which is checked. The two alternate, a round each, and each round starts from the same weights. A step lasts
from fetching its batch to fetching the next, so that hooks, logging and the optimizer count. The table holds medians
over rounds of a round's median step, with their range; "data" is what of it goes to fetching, to the move to the device
and to augmentation there; ratios are medians over rounds of the ratio within a round, of wall time and of CPU time,
which other programs disturb less, with its range. Peak memory counts networks, data and training, each variant in a
process of its own. Where the base is no bare loop, the first column says what it is.

--quick has small networks, where a step takes a few milliseconds and the Trainer's share is large: it shows that
everything runs. Aims are those of the full size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, memory, times
from benchmarks.steps import BARE, OURS
from benchmarks.timing import Spread, in_new_process
from lit_kd.files import replacing

HEAD = """\
| method | ms a step | data, ms | ratio | ratio of CPU time | aim | peak MiB (base) | weights apart |
|---|---|---|---|---|---|---|---|"""
TOLERANCE = 0.01  # of the way that the weights went: both sum in another order, and Adam divides by small gradients


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of a case.

    Raises:
        RuntimeError: the bare loop ends with other weights.
    """
    found = in_new_process(times, name, args)
    if found["apart"] is not None and not found["apart"] < TOLERANCE:
        raise RuntimeError(f"{name} ends {found['apart']:.2g} of the way apart from the bare loop: it does other work.")
    peaks = [in_new_process(memory, name, variant, args) for variant in (found["base"], OURS)]
    return {**found, "peak_mib": peaks, "aim": None if args.quick else CASES[name].aim}


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    aim = found["aim"]
    missed = aim is not None and found["cpu_ratio"].median > aim
    cells = [
        name if found["base"] == BARE else f"{name}, to {found['base']}",
        Spread(*(1e3 * x for x in found["seconds"])),
        f"{1e3 * found['data'].median:.3g}",
        found["ratio"],
        found["cpu_ratio"],
        "" if aim is None else f"{aim}{', **missed**' if missed else ''}",
        "{:.0f} ({:.0f})".format(*reversed(found["peak_mib"])),
        "" if found["apart"] is None else f"{found['apart']:.0e}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "arguments": {name: value for name, value in vars(args).items() if name not in ("out", "only")},
        "seed": 0,
        "versions": {name: version(name) for name in ("torch", "lightning", "transformers", "timm", "peft")},
        "python": platform.python_version(),
        "machine": [platform.system(), platform.machine(), f"{os.cpu_count()} cores"],
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None,
        "load": os.getloadavg(),  # what else ran at the start
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a row as soon as it is known, and write all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small networks, two rounds")
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, help="of each variant; default: 5, or 2 if quick")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file for all numbers")
    args = parser.parse_args(argv)
    args.rounds = args.rounds or (2 if args.quick else 5)
    found: dict[str, Any] = {"environment": environment(args), "cases": {}}
    print(json.dumps(found["environment"]), HEAD, sep="\n\n", flush=True)
    for name in args.only or CASES:
        found["cases"][name] = measure(name, args)
        print(row(name, found["cases"][name]), flush=True)
        if args.out is not None:  # after each case: what is measured stays
            with replacing(args.out) as temporary:
                temporary.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
