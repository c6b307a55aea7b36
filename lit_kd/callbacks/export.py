"""The trained network as files at the end of a fit."""

import inspect
import os
import re
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_kd.callbacks.network_probe import find_attribute
from lit_kd.checks import check_choice
from lit_kd.models.card import Origin, describe_network
from lit_kd.models.ema import EMATeacher
from lit_kd.models.export import save_exported


class ExportStudent(Callback):
    """Writes the trained network and its model card as the fit ends; ``lit_kd.models.load_exported`` reads it.

    The folder holds ``model.safetensors``, ``model.json`` and ``README.md``, see :func:`lit_kd.models.save_exported`.
    The card names method, papers, teacher, data, hyper-parameters and metrics as far as module, data module and trainer
    know them, without secrets and without absolute paths.

    Args:
        folder: where; None: ``export`` in the run's log folder.
        network: attribute of the module that holds the network: a student, or a classifier's network.
        weights: "last": as they are when the fit ends; "best": those of the checkpoint that a ``ModelCheckpoint`` with
            ``monitor`` found best, which the module then has, too.
        license: of the weights, for the card, as the hub writes it: ``apache-2.0``.
        dataset: name of the data on the hub, for the card.
        notes: Markdown, for the card.

    Raises:
        ValueError: a network that the module does not have; "best" without such a callback, or with sharded weights.
    """

    def __init__(
        self,
        folder: str | None = None,
        network: str = "network",
        weights: Literal["last", "best"] = "last",
        license: str | None = None,
        dataset: str | None = None,
        notes: str = "",
    ) -> None:
        check_choice(("last", "best"), weights=weights)
        self.folder = folder
        self.network = network
        self.weights = weights
        self.license, self.dataset, self.notes = license, dataset, notes

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that the network is there, and that a best checkpoint will be."""
        find_attribute(pl_module, self.network, nn.Module)
        if stage == "fit" and self.weights == "best" and _chooser(trainer) is None:
            raise ValueError('weights="best" needs a ModelCheckpoint with monitor among the callbacks: add one.')

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write; every rank takes part in gathering shards."""
        folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "export"
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.weights == "best":
            numbers = self._load_best(trainer, pl_module)
        origin = self._origin(trainer, pl_module, numbers)
        details: dict[str, Any] = {"method": origin.method, "metrics": numbers}
        class_names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
        if class_names:
            details["class_names"] = list(class_names)
        save_exported(find_attribute(pl_module, self.network, nn.Module), folder, details, origin)

    def _origin(self, trainer: Trainer, module: LightningModule, metrics: dict[str, float]) -> Origin:
        """What the card says beside the network itself."""
        data: Any = getattr(trainer, "datamodule", None)
        best = f"Of the best checkpoint by `{next(iter(metrics))}`." if self.weights == "best" else ""
        return Origin(
            method=type(module).__name__,
            summary=_first_sentence(type(module)),
            papers=getattr(module, "papers", ()),
            limits=getattr(module, "limits", ""),
            teacher=_describe_teacher(getattr(module, "teacher", None)),
            data=None if data is None else type(data).__name__,
            dataset=self.dataset,
            settings={
                "training": _training(trainer),
                "data": {} if data is None else data.hparams,
                **_arguments(module),
            },
            metrics={name: value for name, value in metrics.items() if not name.endswith("_step")},
            measured=best or "As the training ended.",
            license=self.license,
            notes=self.notes,
        )

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


def _first_sentence(kind: type) -> str:
    """Of the class's docstring, as Markdown."""
    first = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", first).replace("``", "`")


def _describe_teacher(teacher: Any) -> str | None:
    if isinstance(teacher, EMATeacher):
        return "a moving average of the network itself"
    while isinstance(getattr(teacher, "module", None), nn.Module):  # FrozenTeacher, and what reads a network
        teacher = teacher.module
    return describe_network(teacher) if isinstance(teacher, nn.Module) else teacher


def _training(trainer: Trainer) -> dict[str, Any]:
    """How long, how and how large the steps were."""
    return {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "optimizer": [type(one).__name__ for one in trainer.optimizers],
        "lr": [one.defaults.get("lr") for one in trainer.optimizers],
        "weight_decay": [one.defaults.get("weight_decay") for one in trainer.optimizers],
    }


def _arguments(module: LightningModule) -> dict[str, Any]:
    """The module's hyper-parameters, and the class of each argument that is an object but no network."""
    objects = {
        name: type(getattr(module, name)).__name__
        for name in inspect.signature(type(module)).parameters
        if name not in ("network", "student", "teacher") and getattr(module, name, None) is not None
    }
    return {**objects, **module.hparams}
