"""The confusion matrix of a test as a table and a picture."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lit_kd.files import replacing


class ConfusionMatrixReport(Callback):
    """Writes ``confusion.csv`` (counts, rows true, columns predicted) and ``confusion.png`` (rows sum to 1).

    The files lie in the run's log folder. The picture needs the extra ``plots`` and is left out without it. The matrix
    is that of ``Classifier.test_confusion``, over the whole test set and all ranks.
    """

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        counts: Tensor = pl_module.test_confusion.compute().cpu()  # type: ignore[operator, union-attr]
        data = trainer.datamodule  # type: ignore[attr-defined]
        names = [str(name) for name in getattr(data, "class_names", range(len(counts)))]
        write_confusion(Path(trainer.log_dir or trainer.default_root_dir), counts, names)


@rank_zero_only
def write_confusion(folder: Path, counts: Tensor, names: list[str]) -> None:
    """Write both files of a matrix of counts (C, C)."""
    with replacing(folder / "confusion.csv") as temporary:
        rows = [",".join(["true \\ predicted", *names])]
        rows += [",".join([name, *map(str, row)]) for name, row in zip(names, counts.tolist(), strict=True)]
        temporary.write_text("\n".join(rows) + "\n")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    share = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    edge = 2 + 0.45 * min(len(names), 40)
    figure = Figure(figsize=(edge + 1, edge), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(names) <= 40:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    if len(names) <= 20:
        for (row, column), value in [
            ((r, c), share[r, c].item()) for r in range(len(names)) for c in range(len(names))
        ]:
            if value >= 0.005:
                colour = "white" if value > 0.5 else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image)
    with replacing(folder / "confusion.png") as temporary:
        figure.savefig(temporary, dpi=120)
