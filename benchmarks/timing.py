"""What the measurements share: clocks of steps and calls, rounds that alternate, and processes for peak memory.

All times are pairs of wall and CPU seconds, (2,): other programs on the machine disturb the second less. On a GPU a
clock waits for what was started; there the CPU's seconds say how busy the host is, and wall time is what counts.
"""

from __future__ import annotations

import logging
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from lightning.pytorch.profilers import Profiler
from torch import Tensor

T = TypeVar("T")
WARM_UP = 3  # steps of a round that are not counted: the first allocates, and the data may need a pass
FETCH, MOVE = ".train_dataloader_next", ".batch_to_device"  # ends of the Trainer's names for what it profiles


def now() -> Tensor:
    """Wall and CPU time."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def timed(call: Callable[[], Any]) -> Tensor:
    """Seconds of a call, (2,)."""
    start = now()
    call()
    return now() - start


class StepClock(Profiler):
    """Seconds of training steps and what of them goes to data: the Trainer's ``profiler``, or a bare loop's.

    A step lasts from fetching its batch to fetching the next one, so that hooks, logging and the optimizer count. Data
    are fetching, the move to the device, and augmentation there. The last step has no end and is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Tensor] = []
        self.data: list[Tensor] = []

    def start(self, action_name: str) -> None:
        """An action begins."""
        if action_name.endswith((FETCH, MOVE)):
            self._since = now()
        if action_name.endswith(FETCH):
            self.begun.append(self._since)
            self.data.append(torch.zeros(2, dtype=torch.float64))

    def stop(self, action_name: str) -> None:
        """It is over."""
        if self.data and action_name.endswith((FETCH, MOVE)):
            self.data[-1] += now() - self._since

    def steps(self) -> Tensor:
        """Of each counted step the whole and its data, wall and CPU, (steps, 2, 2)."""
        whole = torch.stack(self.begun)[WARM_UP:].diff(dim=0)
        return torch.stack([whole, torch.stack(self.data)[WARM_UP:-1]], 1)


def alternate(variants: Mapping[str, Callable[[], T]], rounds: int) -> Iterator[dict[str, T]]:
    """What each variant returned, in rounds of one call of each: drifts of the machine meet all of them alike."""
    for _ in range(rounds):
        yield {name: run() for name, run in variants.items()}


class Spread(NamedTuple):
    """Median, least and greatest of some numbers."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """The median with the range in brackets."""
        return "{:.3g} ({:.3g}-{:.3g})".format(*self)


def spread(values: Iterable[float] | Tensor) -> Spread:
    """That of some numbers."""
    numbers = torch.as_tensor(values if isinstance(values, Tensor) else list(values), dtype=torch.float64)
    return Spread(*(float(x) for x in (numbers.quantile(0.5), numbers.min(), numbers.max())))


class Compared(NamedTuple):
    """Wall seconds of a variant, and the ratio to its base within a round, of wall and of CPU time."""

    seconds: Spread
    ratio: Spread
    cpu_ratio: Spread


def compared(rounds: Sequence[Mapping[str, Tensor]]) -> dict[str, Compared]:
    """Seconds (2,) of each round and variant, the first of which is the base."""
    found = {}
    for name in rounds[0]:
        own = torch.stack([one[name] for one in rounds])
        ratio = own / torch.stack([next(iter(one.values())) for one in rounds])
        found[name] = Compared(spread(own[:, 0]), *(spread(column) for column in ratio.unbind(1)))
    return found


def peak_memory(run: Callable[[], Any]) -> float:
    """MiB that a call needs at most above what was needed before: on the GPU if it uses one, else resident.

    The resident peak never falls: for each call a new process.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def in_new_process(function: Callable[..., T], *arguments: Any) -> T:
    """What a function of a module returns in a process of its own, which is forked from one that has the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def quiet(threads: int) -> None:
    """Set torch's threads, and leave out Lightning's advice on workers and devices."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
