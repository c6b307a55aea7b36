"""What a run came to, on one page."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_kd.files import replacing


class History(Logger):
    """A logger that keeps the last value of each metric in each epoch in memory."""

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.epochs: dict[int, dict[str, float]] = {}
        self._save_dir = save_dir

    @property
    def name(self) -> str:
        """Empty: as a run's only logger it must not move the checkpoints into a folder of its own."""
        return ""

    @property
    def version(self) -> str:
        """Of the run: none."""
        return ""

    @property
    def save_dir(self) -> str:
        """Where a run without another logger keeps its files."""
        return self._save_dir

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Not kept."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Keep; Lightning adds the epoch to whatever is logged while training."""
        values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        self.epochs.setdefault(int(metrics.get("epoch", 0)), {}).update(values)


class RunSummary(Callback):
    """Writes ``summary.md`` (each metric's last, lowest and highest epoch), ``curves.csv`` and ``curves.png``.

    The files lie in the run's log folder when the fit ends. The picture needs the extra ``plots`` and is left out
    without it. The history is in the checkpoint, so that the curves go on after a resume; only the training averages
    of the very epoch after which a checkpoint was written are not in it, because Lightning logs them afterwards.
    """

    def __init__(self) -> None:
        self.history = History(".")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to what is logged: callback_metrics would mix the epochs."""
        self.history = History(trainer.default_root_dir)
        if stage == "fit":
            trainer.loggers = [*trainer.loggers, self.history]

    def state_dict(self) -> dict[str, Any]:
        """The history so far."""
        return {"epochs": self.history.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history of a checkpoint."""
        self.history.epochs = dict(state_dict["epochs"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        rows = self.history.epochs
        names = sorted({name for row in rows.values() for name in row})
        curves = {name: [row.get(name, math.nan) for row in rows.values()] for name in names}
        write_summary(folder, type(pl_module).__name__, list(rows), curves)


@rank_zero_only
def write_summary(folder: Path, title: str, epochs: list[int], curves: dict[str, list[float]]) -> None:
    """Write the table and the curves; each curve has one value an epoch, NaN where there was none."""
    with replacing(folder / "curves.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", *curves])
        writer.writerows(zip(epochs, *curves.values(), strict=True))
    lines = [
        f"# {title}, {len(epochs)} epochs",
        "",
        "| metric | last | lowest (epoch) | highest (epoch) |",
        "|---|---|---|---|",
    ]
    for name, values in curves.items():
        known = [(value, epoch) for value, epoch in zip(values, epochs, strict=True) if not math.isnan(value)]
        (low, low_epoch), (high, high_epoch) = min(known), max(known)
        lines.append(f"| {name} | {known[-1][0]:.4f} | {low:.4f} ({low_epoch}) | {high:.4f} ({high_epoch}) |")
    with replacing(folder / "summary.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    _draw(folder / "curves.png", title, epochs, curves)


def _draw(path: Path, title: str, epochs: list[int], curves: dict[str, list[float]]) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    columns = min(3, len(curves)) or 1
    rows = -(-len(curves) // columns) or 1
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, values) in zip(axes.flat, curves.items(), strict=False):
        axis.plot(epochs, values, marker="." if len(epochs) < 40 else None)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(curves) :]:
        axis.set_visible(False)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
