"""The random state of every rank in the checkpoint."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class RandomState(Callback):
    """Saves torch's random state of every rank and restores it as training goes on after a resume.

    With loaders that keep their position and augmentation that is counted rather than drawn, a resumed run equals the
    straight one bit for bit on a CPU, dropout included. The methods of this library bring this callback along.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the trainer: ``state_dict`` is not told of it."""
        self._gather = trainer.strategy.all_gather
        self._device = trainer.strategy.root_device

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks, each (world size, bytes)."""
        states = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self._device)
        return {name: self._gather(state.to(self._device)).cpu().view(-1, len(state)) for name, state in states.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: the sanity check and the set-up may draw before."""
        self._pending = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore, as far as this run has the ranks and devices of the saved one."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if trainer.global_rank < len(pending["cpu"]):
            # A copy: of a view, torch 2.14 reads the storage from its start to beyond its end.
            torch.set_rng_state(pending["cpu"][trainer.global_rank].clone())
            if "cuda" in pending and self._device.type == "cuda":
                torch.cuda.set_rng_state(pending["cuda"][trainer.global_rank], self._device)
