"""What all methods share: optimizers, loss bookkeeping, checkpoint rules, sharding."""

import inspect
import math
from abc import ABC
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics import Metric

from lit_kd.callbacks.effective_batch import EffectiveBatch
from lit_kd.callbacks.random_state import RandomState
from lit_kd.callbacks.safe_stop import SafeStop
from lit_kd.models.card import Paper


class Distill(LightningModule, ABC):
    """Base of every method; abstract: load a checkpoint through its own class or ``LightningModule``.

    Args:
        optimizer: called with the parameters that require gradients; None: the method's published recipe.
        lr_scheduler: called with the optimizer and stepped once an epoch; None: the method's published schedule. A
            constant rate is ``torch.optim.lr_scheduler.ConstantLR`` with ``factor: 1``.
    """

    schedule_interval: Literal["epoch", "step"] = "epoch"  # at which the published schedule is stepped
    papers: ClassVar[tuple[Paper, ...]] = ()  # for the model card, as is the next
    limits: ClassVar[str] = ""  # what has to be said against the method

    def __init__(
        self, optimizer: OptimizerCallable | None = None, lr_scheduler: LRSchedulerCallable | None = None
    ) -> None:
        super().__init__()
        self._save_plain_hyperparameters()
        self.make_optimizer = optimizer or self.default_optimizer
        self.make_scheduler = lr_scheduler or self.default_scheduler

    def _save_plain_hyperparameters(self) -> None:
        """``save_hyperparameters`` of the concrete class without objects that were built in Python.

        Modules, callables and the like could not be read back with ``weights_only=True``; a dataclass is kept as the
        dict of its fields. From the command line the hyper-parameters are class paths and plain values, which rebuild
        everything, and all are kept.
        """
        frame = inspect.currentframe()
        assert frame is not None
        objects: set[str] = set()
        level = frame.f_back
        while level is not None and level.f_locals.get("self") is self:  # the __init__ of each class, upwards
            objects |= {name for name, value in level.f_locals.items() if not _is_plain(value)}
            level = level.f_back
        self.save_hyperparameters(ignore=sorted(objects), frame=frame.f_back)
        if "_instantiator" in self.hparams:  # Lightning's mark for values that came from the command line
            own = inspect.signature(type(self)).parameters  # a link to a parameter that this class lacks is listed, too
            strangers = [name for name in self.hparams if name not in own and not name.startswith("_")]
            self.save_hyperparameters(ignore=strangers, frame=frame.f_back)
        for name, value in self.hparams.items():
            if is_dataclass(value) and not isinstance(value, type):
                self.hparams[name] = asdict(value)

    # Optimizers

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """The published optimizer."""
        raise NotImplementedError

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """The published schedule over ``trainer.max_epochs``, stepped at each ``schedule_interval``."""
        raise NotImplementedError

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer of the parameters that require gradients, and scheduler."""
        optimizer = self.build_optimizer()
        scheduler = self.make_scheduler(optimizer)
        config: Any = {"scheduler": scheduler, "interval": self.schedule_interval if self._by_recipe else "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    def build_optimizer(self) -> Optimizer:
        """The optimizer of all parameters that require gradients."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            raise ValueError(f"{type(self).__name__} has no parameter that requires a gradient: nothing would learn.")
        return self.make_optimizer(trained)

    @property
    def _by_recipe(self) -> bool:
        return self.make_scheduler == self.default_scheduler

    def on_train_start(self) -> None:
        """See that a published schedule by step knows how long an epoch is."""
        if self._by_recipe and self.schedule_interval == "step" and self.trainer.num_training_batches == float("inf"):
            raise ValueError("The data do not say how long an epoch is: give an lr_scheduler of your own.")

    def steps_an_epoch(self) -> int:
        """Optimizer steps of an epoch. A published schedule must not ask before its first step.

        To ask for the number of batches loads the data, and in Lightning 2.6 the position of a resumed loader is lost
        if that happens before the checkpoint is read; ``trainer.estimated_stepping_batches`` does it, too.
        """
        return math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)

    def schedule_by_step(
        self, optimizer: Optimizer, factor: Callable[[int, int], float], first: float = 0.0
    ) -> LambdaLR:
        """A published schedule over ``trainer.max_epochs``, stepped by optimizer steps.

        Args:
            optimizer: whose rate it scales.
            factor: of the rate, by the step and the number of steps.
            first: the factor of step 0, when that number must not be asked for yet.
        """
        epochs = self.planned_epochs
        return LambdaLR(optimizer, lambda step: factor(step, epochs * self.steps_an_epoch()) if step else first)

    @property
    def planned_epochs(self) -> int:
        """Epochs that a published schedule is stretched over.

        Raises:
            ValueError: the trainer has no ``max_epochs``.
        """
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"max_epochs={epochs} of the Trainer gives the published schedule no length: set max_epochs, "
                "or give an lr_scheduler of your own."
            )
        return epochs

    # Loss

    def log_terms(self, terms: dict[str, Tensor], batch_size: int, index: Tensor | None = None) -> Tensor:
        """Sum the terms of the loss, log each as ``train/<name>`` and the sum as ``train/loss``.

        Raises:
            FloatingPointError: the loss is not finite; the sentence gives each term and the batch's indices. It comes
                before the optimizer has touched the weights.
        """
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            values = ", ".join(f"{name} {float(value.detach()):g}" for name, value in terms.items())
            where = "unknown (the batch has no 'index')" if index is None else index.tolist()
            raise FloatingPointError(
                f"The loss is not finite at step {self.global_step} ({values}); indices of the batch: {where}."
            )
        self.log("train/loss", loss.detach(), batch_size=batch_size, prog_bar=True, on_epoch=True)
        if len(terms) > 1:
            named = {f"train/{name}": value.detach() for name, value in terms.items()}
            self.log_dict(named, batch_size=batch_size, on_step=False, on_epoch=True)
        return loss

    # Devices

    def configure_callbacks(self) -> list[Callback]:
        """An exact resume, what a step is made of, and how a run that breaks off goes on."""
        return [RandomState(), EffectiveBatch(), SafeStop()]

    def configure_model(self) -> None:
        """Shard every child with parameters under FSDP2 (``ModelParallelStrategy``), and nothing else."""
        if self.device_mesh is None:  # only that strategy makes one; load_from_checkpoint comes without a trainer
            return
        # Lightning's loader of one-file checkpoints walks the parameters and never asks the frozen teacher's hook.
        self.strict_loading = False
        for child in self.children():
            if any(True for _ in child.parameters()) and not isinstance(child, FSDPModule):
                child.to(memory_format=torch.contiguous_format)  # it shards no other, such as channels_last
                # A root stays gathered after a forward that no backward follows, unless told otherwise.
                fully_shard(child, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)

    def on_fit_start(self) -> None:
        """What learns is in train mode: a network handed over in eval mode would train without its dropout.

        Metrics are reset: after ``validate`` they hold inference tensors, which the validation of a fit cannot change.
        """
        self.train()
        for part in self.modules():
            if isinstance(part, Metric):
                part.reset()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Under FSDP2, where loading is not strict, see to it that every key of what was trained is there."""
        # Lightning has loaded the weights and taken them out of `checkpoint`, so the file is asked. A folder, the other
        # form of checkpoint, is loaded strictly in any case.
        if self.device_mesh is None or not Path(str(self.trainer.ckpt_path)).is_file():
            return
        saved = torch.load(str(self.trainer.ckpt_path), map_location="cpu", mmap=True, weights_only=True)["state_dict"]
        missing = sorted(self.state_dict().keys() - saved.keys())
        if missing:
            raise ValueError(f"The checkpoint lacks {len(missing)} keys of {type(self).__name__}: {missing[:5]}.")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, Tensor)) or is_dataclass(value)
