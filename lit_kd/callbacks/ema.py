"""The clock of an EMA teacher."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_kd.models.ema import EMATeacher


class EMATeacherCallback(Callback):
    """Updates an :class:`lit_kd.models.EMATeacher` once per optimizer step, whatever the module does with it.

    The update comes before the first micro-batch of a step. So all micro-batches of an effective batch have one
    teacher, which has absorbed the weights up to the last optimizer step, and the update before the very first step
    changes nothing, as in OBoW. With ``accumulate_grad_batches`` the momentum is not adjusted: it is per optimizer
    step, and equal effective batches give equal teachers. Validation, sanity check, test and predict never move it.

    Args:
        teacher: attribute of the module that holds the teacher.
        student: attribute that holds the network it follows.

    Raises:
        ValueError: before the first batch: there is no such teacher or student, parameters of the teacher require
            gradients, or the Trainer does not say how long the training is and the teacher has no ``total_steps``.
    """

    def __init__(self, teacher: str = "teacher", student: str = "student") -> None:
        self.teacher = teacher
        self.student = student
        self._step: int | None = None  # the optimizer step that the last update was for

    def state_dict(self) -> dict[str, Any]:
        """Which step the last update was for: a run resumed within an effective batch does not update again."""
        return {"step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self._step = state_dict["step"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Each fit begins anew; Lightning loads a checkpoint after this."""
        if stage == "fit":
            self._step = None
            if not isinstance(getattr(pl_module, self.teacher, None), EMATeacher):
                raise ValueError(f"{type(pl_module).__name__} has no EMATeacher at teacher={self.teacher!r}.")
            if not hasattr(pl_module, self.student):
                raise ValueError(f"{type(pl_module).__name__} has nothing at student={self.student!r}.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the teacher how long the training is, and see that it is frozen."""
        teacher: EMATeacher = getattr(pl_module, self.teacher)
        if trainer.global_step == 0 and self._step is None:  # another training of the same module
            teacher.clock.zero_()
        total = trainer.estimated_stepping_batches
        if 0 < total < float("inf"):
            teacher.total_steps = int(total)
        teacher.momentum_at(0)
        trainable = [name for name, p in teacher.named_parameters() if p.requires_grad]
        if trainable:
            raise ValueError(
                f"{self.teacher} must not be trained, but {len(trainable)} of its parameters require gradients "
                f"({trainable[0]}, ...): freeze it with requires_grad_(False)."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Update at the first micro-batch of an optimizer step."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            getattr(pl_module, self.teacher).update(getattr(pl_module, self.student))
