"""A validation before training, and none left out on resume."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info


class FirstValidation(Callback):
    """Validates the network as it is before its first step, logs that at step 0 and prints it.

    Lightning leaves out a validation that was to follow right behind the step whose checkpoint is resumed. It is made
    up for, as what a method keeps may depend on each validation.
    """

    def __init__(self) -> None:
        self.step: int | None = None  # of the last validation

    def state_dict(self) -> dict[str, Any]:
        """The step of the last validation."""
        return {"step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self.step = state_dict["step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, if it is the start or one is owed."""
        step = trainer.global_step
        if not any(trainer.num_val_batches) or (step and (step == self.step or not _due(trainer))):
            return
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        words = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        rank_zero_info(f"At step {step}: {words}" if step else f"Before training: {words}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the step."""
        if not trainer.sanity_checking:
            self.step = trainer.global_step


def _due(trainer: Any) -> bool:
    epoch = trainer.num_training_batches, trainer.accumulate_grad_batches
    return validation_due(trainer.global_step, *epoch, trainer.val_check_batch, trainer.check_val_every_n_epoch)


def validation_due(step: int, batches: int, accumulate: int, interval: int | float, every: int | None) -> bool:
    """Whether a trainer validates behind optimizer step ``step``, of ``batches`` an epoch.

    Args:
        step: from 1.
        batches: of an epoch.
        accumulate: batches of a step; an epoch's last step may have fewer.
        interval: batches from validation to validation, ``trainer.val_check_batch``.
        every: epochs from one with validations to the next; None: ``interval`` counts through all epochs.

    Example:
        >>> [step for step in range(1, 13) if validation_due(step, batches=7, accumulate=2, interval=7, every=2)]
        [8]
        >>> [step for step in range(1, 9) if validation_due(step, batches=8, accumulate=2, interval=4, every=1)]
        [2, 4, 6, 8]
    """
    epoch, place = divmod(step - 1, math.ceil(batches / accumulate))
    done = min((place + 1) * accumulate, batches)
    if every is None:
        return (epoch * batches + done) % interval == 0
    return (epoch + 1) % every == 0 and done % interval == 0
