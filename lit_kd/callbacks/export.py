"""The trained network as files at the end of a fit."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_kd.models.export import save_exported


class ExportStudent(Callback):
    """Writes ``model.safetensors`` and ``model.json`` as the fit ends; ``lit_kd.models.load_exported`` reads them.

    Args:
        folder: where; None: ``export`` in the run's log folder.
        network: attribute of the module that holds the network: a student, or a classifier's network.
        weights: "last": as they are when the fit ends; "best": those of the checkpoint that a ``ModelCheckpoint`` with
            ``monitor`` found best, which the module then has, too.

    Raises:
        ValueError: "best" without such a callback, or with sharded weights.
    """

    def __init__(
        self, folder: str | None = None, network: str = "network", weights: Literal["last", "best"] = "last"
    ) -> None:
        if weights not in ("last", "best"):
            raise ValueError(f'weights={weights!r} must be "last" or "best".')
        self.folder = folder
        self.network = network
        self.weights = weights

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that a best checkpoint will be there."""
        if stage == "fit" and self.weights == "best" and _chooser(trainer) is None:
            raise ValueError('weights="best" needs a ModelCheckpoint with monitor among the callbacks: add one.')

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write; every rank takes part in gathering shards."""
        folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "export"
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.weights == "best":
            numbers = self._load_best(trainer, pl_module)
        details: dict[str, Any] = {"method": type(pl_module).__name__, "metrics": numbers}
        class_names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        if class_names:
            details["class_names"] = list(class_names)
        save_exported(getattr(pl_module, self.network), folder, details)

    def _load_best(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Give the module the best weights; what they were chosen by."""
        kept = _chooser(trainer)
        if pl_module.device_mesh is not None or kept is None or not kept.best_model_path:
            raise ValueError('weights="best" finds no checkpoint in one file: export weights="last", or do not shard.')
        saved = torch.load(kept.best_model_path, map_location="cpu", weights_only=True)
        pl_module.load_state_dict(saved["state_dict"])
        assert kept.monitor is not None and kept.best_model_score is not None
        return {kept.monitor: float(kept.best_model_score)}


def _chooser(trainer: Trainer) -> ModelCheckpoint | None:
    found = (one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint))
    return next((one for one in found if one.monitor is not None), None)
