"""A teacher that follows its student."""

import copy
import math
from itertools import compress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_kd.checks import check_choice, check_network, check_share, check_whole_or_none


class EMATeacher(nn.Module):
    """A copy of the student whose weights are an exponential moving average of the student's.

        theta_T <- a_t theta_T + (1 - a_t) theta_S,   a_t = 1 - (1 - momentum) (1 + cos(pi t / T)) / 2

    t counts the updates, one an optimizer step, and stands in the checkpoint; T is their total number. The momentum is
    read before t moves on: the first update uses ``momentum`` itself, the last a_{T-1} < 1. Only :meth:`update`
    changes the weights; a forward, in whatever mode, does not.

    Batch normalisation: MoCo and OBoW leave the buffers alone (``none``), with the teacher in train mode, where it
    normalises by its own batch and its running statistics come from its own forwards. A teacher in eval mode needs
    ``copy`` or ``ema`` (facebookresearch/moco#70, CuriousAI/mean-teacher#9).

    Args:
        student: it is copied, with its weights; ``self.module`` is the copy.
        momentum: a_0.
        schedule: ``cosine``, rising to 1, or ``constant``.
        total_steps: T, optimizer steps of the whole training; :class:`lit_kd.callbacks.EMATeacherCallback` sets it.
        buffers: what an update does with the student's buffers: ``none``, ``copy`` or ``ema`` (of those that are not
            floating point, a copy).
        mode: ``train`` follows ``train()`` and ``eval()`` of the parent; ``eval`` is locked in eval mode.

    Attributes:
        clock: t, int64.

    Raises:
        ValueError: a momentum outside [0, 1], an unknown choice; by ``update``, a student of another structure, or a
            cosine without ``total_steps``.

    Example:
        >>> student = nn.Linear(2, 1, bias=False)
        >>> teacher = EMATeacher(student, momentum=0.5, total_steps=10)
        >>> with torch.no_grad():
        ...     _ = student.weight.fill_(1.0), teacher.module.weight.fill_(0.0)
        >>> teacher.update(student)
        >>> teacher.module.weight, int(teacher.clock)
        (Parameter containing:
        tensor([[0.5000, 0.5000]]), 1)
    """

    clock: Tensor

    def __init__(
        self,
        student: nn.Module,
        momentum: float = 0.99,
        schedule: Literal["cosine", "constant"] = "cosine",
        total_steps: int | None = None,
        buffers: Literal["none", "copy", "ema"] = "none",
        mode: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__()
        check_network(student=student)
        check_share(momentum=momentum)
        check_choice(("cosine", "constant"), schedule=schedule)
        check_whole_or_none(total_steps=total_steps)
        check_choice(("none", "copy", "ema"), buffers=buffers)
        check_choice(("train", "eval"), mode=mode)
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.momentum = momentum
        self.schedule = schedule
        self.total_steps = total_steps
        self.buffers_mode = buffers
        self.mode = mode
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))
        self.train(self.training)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's output, without a graph."""
        return self.module(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the copy in place."""
        self.module.compile(*args, **kwargs)

    def train(self, mode: bool = True) -> "EMATeacher":
        """Train or eval mode, as ``mode`` of this teacher allows."""
        return super().train(mode and self.mode == "train")

    def momentum_at(self, step: int) -> float:
        """a_t at t = ``step``; 1 from T on.

        Raises:
            ValueError: a cosine without ``total_steps``.
        """
        if self.schedule == "constant":
            return self.momentum
        if self.total_steps is None:
            raise ValueError(
                "total_steps=None gives the cosine of the teacher's momentum no length: set max_epochs or max_steps of "
                "the Trainer, or take a constant momentum."
            )
        progress = min(1.0, step / max(1, self.total_steps))
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move towards the student and count the step."""
        weight = 1 - self.momentum_at(int(self.clock))
        _lerp(list(self.module.parameters()), list(student.parameters()), weight)
        if self.buffers_mode != "none":
            own, theirs = list(self.module.buffers()), list(student.buffers())
            averaged = [self.buffers_mode == "ema" and buffer.is_floating_point() for buffer in own]
            _lerp(list(compress(own, averaged)), list(compress(theirs, averaged)), weight)
            copied = [not flag for flag in averaged]
            _lerp(list(compress(own, copied)), list(compress(theirs, copied)), 1.0)
        self.clock += 1


def _lerp(own: list[Tensor], theirs: list[Tensor], weight: float) -> None:
    if [t.shape for t in own] != [t.shape for t in theirs]:
        raise ValueError("The student is not of its teacher's structure any more: build the teacher after changes.")
    if not own or weight <= 0:
        return
    if weight >= 1:
        torch._foreach_copy_(own, theirs)
    else:
        torch._foreach_lerp_(own, theirs, weight)  # in place: storages stay, and one call for all tensors
