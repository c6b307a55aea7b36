"""The trained network as files at the end of a fit."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_kd.models.export import save_exported


class ExportStudent(Callback):
    """Writes ``model.safetensors`` and ``model.json`` as the fit ends; ``lit_kd.models.load_exported`` reads them.

    Args:
        folder: where; None: ``export`` in the run's log folder.
        network: attribute of the module that holds the network: a student, or a classifier's network.
    """

    def __init__(self, folder: str | None = None, network: str = "network") -> None:
        self.folder = folder
        self.network = network

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write; every rank takes part in gathering shards."""
        folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "export"
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        details: dict[str, Any] = {"method": type(pl_module).__name__, "metrics": numbers}
        class_names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        if class_names:
            details["class_names"] = list(class_names)
        save_exported(getattr(pl_module, self.network), folder, details)
