"""A run that has to end leaves a checkpoint, and one that breaks says where to go on."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_kd.files import replacing

# Windows lacks the second.
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class SafeStop(Callback):
    """Leaves a training that is told to end, or that breaks, so that it can go on. Every method brings it along.

    - SIGTERM waits for the end of the optimizer's step, on all ranks together; then ``last-sigterm-step=<n>.ckpt`` is
      written into the folder of the first ``ModelCheckpoint``, and the process exits with 143. A validation is ended
      first: of half of one, Lightning could not go on exactly. Without a ``ModelCheckpoint`` nothing is written.
    - SIGUSR1, at which Lightning under SLURM saves and requeues the job, waits for the same moment: Lightning itself
      would save in the middle of a step.
    - After any exception one line on stderr says the step, the reason, the newest whole checkpoint and how to go on.
    - Checkpoints in one file are written beside their place and renamed, so that one which a kill or a full disk cuts
      off never stands under its name; Lightning's are copied from the system's temporary folder.
    """

    def __init__(self) -> None:
        self._received: set[int] = set()
        self._handlers: dict[int, Any] = {}
        self._step = 0
        self._before: dict[Path, int] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write whole checkpoints, unless the user has a plugin for them."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep Lightning's handlers for later, and know which checkpoints are older than the run."""
        self._before = _checkpoints(trainer)
        self._received = {signal.SIGTERM} if trainer.received_sigterm else set()
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in SIGNALS}
            self._handlers = {number: handler for number, handler in found.items() if callable(handler)}
            for number in self._handlers:
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self._received.add(number)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the step."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Do what was asked for, after an optimizer step: between two of them gradients would be lost."""
        if trainer.global_step == self._step:
            return
        asked = self._asked(trainer, pl_module.device)
        for number in asked & set(self._handlers) - {signal.SIGTERM}:
            self._handlers[number](number, None)
        if signal.SIGTERM in asked:
            folder = _folders(trainer)
            if folder:
                trainer.save_checkpoint(folder[0] / f"last-sigterm-step={trainer.global_step}.ckpt")
            raise SIGTERMException

    def _asked(self, trainer: Trainer, device: torch.device) -> set[int]:
        """The signals that any rank has received since it was last asked."""
        received, self._received = self._received, set()
        if trainer.world_size == 1:  # no tensor: to read it, a GPU would have to be waited for
            return received
        flags = torch.tensor([float(number in received) for number in SIGNALS], device=device)
        flags = trainer.strategy.reduce(flags, reduce_op="max")
        return {number for number, flag in zip(SIGNALS, flags.tolist(), strict=True) if flag}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the handlers back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_predict_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Stop at SIGTERM: Lightning does not look at it while it predicts."""
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say how to go on."""
        self.on_train_end(trainer, pl_module)
        reason = type(exception).__name__
        if isinstance(exception, SIGTERMException):
            reason = "SIGTERM"
            exception.code = 128 + signal.SIGTERM if trainer.is_global_zero else 0  # 0: else rank 0 would be killed
        if trainer.training or trainer.validating or trainer.sanity_checking:
            print(f"lit_kd: {self._how_to_go_on(trainer, reason)}{_advice(exception)}", file=sys.stderr, flush=True)

    def _how_to_go_on(self, trainer: Trainer, reason: str) -> str:
        stopped = f"Stopped by {reason} in epoch {trainer.current_epoch} after step {trainer.global_step}"
        found = _checkpoints(trainer)
        new = [file for file, time in found.items() if self._before.get(file) != time]
        last = max(new, key=lambda file: found[file], default=trainer.ckpt_path)
        if last is not None:
            return f"{stopped}. The last checkpoint is {last}: go on with --ckpt_path '{last}'."
        if not _folders(trainer):
            return f"{stopped}, without a checkpoint: add a ModelCheckpoint to trainer.callbacks."
        return f"{stopped}, before the first checkpoint: start again, or let ModelCheckpoint save more often."


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints in one file that are whole or absent; see :func:`lit_kd.files.replacing`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write to a temporary file in the same folder and rename it; remote paths are Lightning's."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(path) as temporary, temporary.open("wb") as file:  # of a path, torch hides why it can't write
            torch.save(checkpoint, file)


def _folders(trainer: Trainer) -> list[Path]:
    """Where checkpoints go."""
    found = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    return [Path(folder) for folder in found if folder]


def _checkpoints(trainer: Trainer) -> dict[Path, int]:
    """Whole checkpoints in these folders and when they were written; a sharded one is a folder, meta.pt comes last."""
    files = [file for folder in _folders(trainer) for file in folder.rglob("*.ckpt") if not file.name.startswith(".")]
    marks = {file: file / "meta.pt" if file.is_dir() else file for file in files}
    return {file: mark.stat().st_mtime_ns for file, mark in marks.items() if mark.is_file()}


def _advice(exception: BaseException) -> str:
    if "DataLoader worker" in str(exception):
        return (
            " A worker that was killed mostly found no memory left: lower data.num_workers or the batch size, or give "
            "more shared memory (/dev/shm; docker run --shm-size)."
        )
    return ""
