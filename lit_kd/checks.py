"""Checks of arguments: one kind of fault has one sentence all over the library.

Each raises a ValueError that names the argument, its value and what it must be.
"""

from collections.abc import Iterable
from math import inf
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn


def check_whole(least: int = 1, /, **arguments: Any) -> None:
    """Whole numbers from ``least`` on.

    Example:
        >>> check_whole(batch_size=0)
        Traceback (most recent call last):
        ValueError: batch_size=0 must be a whole number, at least 1.
    """
    for name, value in arguments.items():
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number, at least {least}.")


def check_whole_or_none(least: int = 1, /, **arguments: Any) -> None:
    """Whole numbers from ``least`` on, where there are any.

    Example:
        >>> check_whole_or_none(limit=None)
        >>> check_whole_or_none(limit=0)
        Traceback (most recent call last):
        ValueError: limit=0 must be a whole number, at least 1.
    """
    check_whole(least, **{name: value for name, value in arguments.items() if value is not None})


def check_positive(**arguments: Any) -> None:
    """Finite numbers above 0.

    Example:
        >>> check_positive(temperature=0)
        Traceback (most recent call last):
        ValueError: temperature=0 must be a positive number.
    """
    for name, value in arguments.items():
        if not _is_number(value) or not 0 < value < inf:
            raise ValueError(f"{name}={value!r} must be a positive number.")


def check_not_negative(**arguments: Any) -> None:
    """Finite numbers from 0 on.

    Example:
        >>> check_not_negative(weight=-1)
        Traceback (most recent call last):
        ValueError: weight=-1 must be 0 or a positive number.
    """
    for name, value in arguments.items():
        if not _is_number(value) or not 0 <= value < inf:
            raise ValueError(f"{name}={value!r} must be 0 or a positive number.")


def check_share(interval: str = "[0, 1]", /, **arguments: Any) -> None:
    """Numbers of an interval from 0 to 1, whose round brackets leave the end out.

    Example:
        >>> check_share("[0, 1)", warmup=500)
        Traceback (most recent call last):
        ValueError: warmup=500 must be a share in [0, 1).
    """
    for name, value in arguments.items():
        ends = (interval[0] == "(" and value == 0) or (interval[-1] == ")" and value == 1)
        if not _is_number(value) or not 0 <= value <= 1 or ends:
            raise ValueError(f"{name}={value!r} must be a share in {interval}.")


def check_choice(choices: Iterable[Any], /, **arguments: Any) -> None:
    """Values that are among a few.

    Example:
        >>> check_choice(("max", "avg"), pool="mean")
        Traceback (most recent call last):
        ValueError: pool='mean' must be 'max' or 'avg'.
    """
    known = list(choices)
    for name, value in arguments.items():
        if value not in known:
            words = [repr(one) for one in known]
            listed = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
            raise ValueError(f"{name}={value!r} must be {listed}.")


def check_network(**arguments: Any) -> None:
    """Networks.

    Example:
        >>> check_network(student="resnet18")
        Traceback (most recent call last):
        ValueError: student='resnet18' must be a network, a torch.nn.Module.
    """
    for name, value in arguments.items():
        if not isinstance(value, nn.Module):
            raise ValueError(f"{name}={value!r} must be a network, a torch.nn.Module.")


def check_list(**arguments: Any) -> None:
    """Several values, where a string would pass for its letters.

    Example:
        >>> check_list(omit_classes="cat")
        Traceback (most recent call last):
        ValueError: omit_classes='cat' must be a list.
    """
    for name, value in arguments.items():
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"{name}={value!r} must be a list.")


def check_image_shape(image_shape: Any) -> None:
    """Channels, height and width.

    Example:
        >>> check_image_shape(224)
        Traceback (most recent call last):
        ValueError: image_shape=224 must be (C, H, W), three whole numbers, each at least 1.
    """
    sizes = image_shape if isinstance(image_shape, (tuple, list)) else ()
    if len(sizes) != 3 or any(not isinstance(size, Integral) or size < 1 for size in sizes):
        raise ValueError(f"image_shape={image_shape!r} must be (C, H, W), three whole numbers, each at least 1.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (Real, Tensor))
