"""Numbers of tests, never without the settings that they were reached with."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_kd.files import replacing
from lit_kd.models.card import versions
from lit_kd.models.fingerprint import weights_fingerprint

Group = dict[str, Any]  # "settings", "runs", "mean", "deviation"


class ResultFile(Callback):
    """Writes what ``test`` found into a JSON file, with the settings that decided on it, and as a Markdown table.

    The settings are the module, the network's path and a fingerprint of its weights, the checkpoint, every field of the
    sampling, the data's description, limits and precision. Tests that differ in nothing but their seed, that of
    the sampling, are one group: their metrics are averaged, with the standard deviation over seeds. Any other
    difference, such as another repetition penalty, starts a group of its own, so unlike numbers are never averaged. A
    test that is run again takes the place of its former run. The file is replaced as a whole; several tests may write
    to one file one after another, not at once.

    Args:
        path: of the JSON file, the table beside it ends in ``.md``; None: ``results.json`` in the run's log folder.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is not None and not path.endswith(".json"):
            raise ValueError(f"path={path!r} must end in .json: the table takes the same name with .md.")
        self.path = path

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the test to the file."""
        path = Path(self.path or Path(trainer.log_dir or trainer.default_root_dir) / "results.json")
        settings, seed = describe_test(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
        groups = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        groups = with_run(groups, settings, {"seed": seed, "metrics": metrics, "versions": versions()})
        for suffix, text in ((".json", json.dumps(groups, indent=2, ensure_ascii=False)), (".md", table(groups))):
            with replacing(path.with_suffix(suffix)) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")


def describe_test(trainer: Trainer, module: Any) -> tuple[dict[str, Any], int | None]:
    """What decides on a test but its seed, as plain values; and its seed."""
    data: Any = getattr(trainer, "datamodule", None)
    sampling, engine = getattr(module, "sampling", None), getattr(module, "engine", None)
    given = getattr(module, "given_engine", None) is not None  # somebody else's network answers
    network = None if given or module.device_mesh is not None else getattr(module, "network", None)
    drawn = None if sampling is None else asdict(sampling)
    seed = os.environ.get("PL_GLOBAL_SEED") if drawn is None else drawn.pop("seed")
    settings = {
        "module": type(module).__name__,
        "kind": getattr(module, "kind", None),
        "engine": None if engine is None else engine.describe(),
        "weights": None if network is None else weights_fingerprint(network),
        "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
        "sampling": drawn,
        "data": data.describe() if hasattr(data, "describe") else type(data).__name__,
        "limit": getattr(data, "limit", None),
        "limit_test_batches": trainer.limit_test_batches,
        "precision": str(trainer.precision),
    }
    return json.loads(json.dumps(settings)), None if seed is None else int(seed)  # tuples as they are read back


def with_run(groups: list[Group], settings: dict[str, Any], run: dict[str, Any]) -> list[Group]:
    """The groups with one more run, or with another one of a seed that there was."""
    found = [group for group in groups if group["settings"] == settings]
    runs = [old for group in found for old in group["runs"] if old["seed"] != run["seed"]]
    runs = sorted([*runs, run], key=lambda one: (one["seed"] is not None, one["seed"] or 0))
    columns = {name: [one["metrics"][name] for one in runs if name in one["metrics"]] for name in run["metrics"]}
    new = {
        "settings": settings,
        "mean": {name: statistics.mean(values) for name, values in columns.items()},
        "deviation": {name: statistics.stdev(values) for name, values in columns.items() if len(values) > 1},
        "runs": runs,
    }
    return [new if group["settings"] == settings else group for group in groups] if found else [*groups, new]


def table(groups: list[Group]) -> str:
    """A row a group: model, data, sampling, seeds, and of each metric the mean and the deviation over the seeds."""
    names = list(dict.fromkeys(name for group in groups for name in group["mean"]))
    heads = ["model", "data", "sampling", "seeds", *(name.removeprefix("test/") for name in names)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for group in groups:
        settings, seeds = group["settings"], ", ".join(str(run["seed"]) for run in group["runs"])
        engine, data, sampling = settings["engine"] or {}, settings["data"], settings["sampling"] or {}
        model = settings["checkpoint"] or engine.get("model") or settings["module"]
        about = data if isinstance(data, str) else " ".join(filter(None, (data["class"], data.get("test"))))
        about += "" if settings["limit"] is None else f", the first {settings['limit']}"
        drawn = ", ".join(f"{name} {value}" for name, value in sampling.items())
        cells = [model, about, drawn, seeds, *(_number(group, name) for name in names)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _number(group: Group, name: str) -> str:
    if name not in group["mean"]:
        return "-"
    mean, deviation = group["mean"][name], group["deviation"].get(name)
    return f"{mean:.4g}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"
