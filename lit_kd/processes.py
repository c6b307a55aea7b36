"""What all processes of a distributed run know together."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather_objects(own: T) -> list[T]:
    """The objects of all processes by rank; every process has to call it. Without a process group its own alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    every: list[T] = [own] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return every
