"""What every loss shares: float32 arithmetic, reduction over the batch and the checks of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from lit_kd.checks import check_choice

P = ParamSpec("P")
R = TypeVar("R")
Reduction = Literal["mean", "none"]


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a loss with autocast off and half precision inputs widened to float32; float64 stays float64."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((tensor.device.type for tensor in _tensors((*args, *kwargs.values()))), "cpu")
        wide_args: Any = [_widen(value) for value in args]
        wide_kwargs: Any = {name: _widen(value) for name, value in kwargs.items()}
        with torch.autocast(device, enabled=False):
            return function(*wide_args, **wide_kwargs)

    return wrapper


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _widen(value: object) -> object:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, (list, tuple)):
        return [_widen(item) for item in value]
    if isinstance(value, dict):
        return {key: _widen(item) for key, item in value.items()}
    return value


def reduce(per_sample: Tensor, reduction: Reduction) -> Tensor:
    """Mean over the batch, or the (B,) terms themselves for "none"."""
    check_choice(("mean", "none"), reduction=reduction)
    return per_sample.mean() if reduction == "mean" else per_sample


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError naming both shapes unless they are one."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


def check_same_batch(student: Tensor, teacher: Tensor) -> None:
    """Raise a ValueError naming both batch sizes unless they are one."""
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must be of the same samples, got {len(student)} and {len(teacher)}")
