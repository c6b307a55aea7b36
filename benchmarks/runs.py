"""What benchmarks of many trainings share: each finished run leaves a file and is not run again."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lit_kd.callbacks import ExportStudent
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


def trainer(epochs: int | None = None, export: Path | None = None) -> Trainer:
    """Of a CPU, without logs."""
    return Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0 if epochs else None,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ExportStudent(str(export))] if export else [],
    )


def fit(module: LightningModule, data: LightningDataModule, epochs: int, export: Path) -> dict[str, float]:
    """Train and export; loss, seconds a step and steps."""
    run = trainer(epochs, export)
    start = time.perf_counter()
    run.fit(module, data)
    seconds = (time.perf_counter() - start) / run.global_step
    return {"loss": float(run.callback_metrics["train/loss_epoch"]), "seconds": seconds, "steps": run.global_step}


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, standard deviation; "-" of none."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def print_systems(systems: Sequence[str], found: Sequence[dict[str, float]]) -> None:
    """A table with a column for each system: mean and deviation of its numbers, of which each run has one."""
    print("| " + " | ".join(systems) + " |\n" + "|---" * len(systems) + "|")
    print("| " + " | ".join(spread([numbers[name] for numbers in found]) for name in systems) + " |")
