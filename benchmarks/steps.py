"""A training step through the Trainer and the same step in a bare PyTorch loop: one round of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

from benchmarks.timing import FETCH, MOVE, WARM_UP, StepClock
from lit_kd.methods.base import Distill

T = TypeVar("T")
Batch = Any  # as the data module gives them
Loss = Callable[[Batch], Tensor]
BARE, OURS = "bare loop", "lit_kd"  # variants; what a bare loop ends with, ours has to end with, too


@dataclass(frozen=True)
class Size:
    """How large a measurement is.

    Attributes:
        quick: small networks and batches.
        steps: counted steps of a round.
        device: "cpu" or "cuda".
        folder: for what data modules read.
        compares: keep the weights of before, to see how they changed.
    """

    quick: bool
    steps: int
    device: str
    folder: Path
    compares: bool = True

    def pick(self, quick: T, full: T) -> T:
        """One of both."""
        return quick if self.quick else full

    @property
    def batches(self) -> int:
        """Of a round, the one whose end is not measured included."""
        return WARM_UP + self.steps + 1


@dataclass(frozen=True)
class Round:
    """What a round found.

    Attributes:
        times: of the whole and of data, wall and CPU seconds of a median step, (2, 2).
        change: of each trained weight, or whatever else the round has made, to compare with another variant's.
    """

    times: Tensor
    change: list[Tensor]


Variant = Callable[[], Round]


def constant(optimizer: Optimizer) -> LRScheduler:
    """One rate in all steps."""
    return ConstantLR(optimizer, factor=1.0)


def trained(module: Distill) -> list[Tensor]:
    """A copy of the weights that learn."""
    return [p.detach().clone() for p in module.parameters() if p.requires_grad]


def measured(size: Size, module: Distill, train: Callable[[StepClock], None]) -> Round:
    """The round of a new module."""
    before, clock = trained(module) if size.compares else None, StepClock()
    train(clock)
    change = [] if before is None else [x.cpu() - y for x, y in zip(trained(module), before, strict=True)]
    return Round(clock.steps().quantile(0.5, dim=0), change)


def through_trainer(size: Size, make: Callable[[], Distill], data: LightningDataModule) -> Variant:
    """A Trainer without logger, checkpoints and progress bar; each round starts from the same weights."""

    def run() -> Round:
        seed_everything(0, verbose=False)
        module = make()

        def train(clock: StepClock) -> None:
            trainer = Trainer(
                accelerator=size.device,
                devices=1,
                max_epochs=1,
                limit_train_batches=size.batches,
                profiler=clock,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            trainer.fit(module, data)

        return measured(size, module, train)

    return run


def in_bare_loop(
    size: Size, make: Callable[[], Distill], data: LightningDataModule, loss: Callable[[Any], Loss]
) -> Variant:
    """The networks and the optimizer of such a module, in a plain loop over the batches of the same data module.

    ``loss`` makes, of the module, a function from a batch to the loss, in plain PyTorch.
    """

    def run() -> Round:
        seed_everything(0, verbose=False)
        module = make()

        def train(clock: StepClock) -> None:
            data.setup("fit")
            module.to(size.device).train()
            optimizer, of = module.build_optimizer(), loss(module)
            for batch in moved(data, clock, size):
                value = of(batch)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()

        return measured(size, module, train)

    return run


def moved(data: LightningDataModule, clock: StepClock, size: Size) -> Iterator[Batch]:
    """Batches on the device, augmented there."""
    batches = iter(data.train_dataloader())
    for _ in range(size.batches):
        with clock.profile(FETCH):
            batch = next(batches)
        with clock.profile(MOVE):
            batch = data.transfer_batch_to_device(batch, torch.device(size.device), 0)
            batch = data.on_after_batch_transfer(batch, 0)
        yield batch


def pair(size: Size, make: Callable[[], Distill], data: LightningDataModule, loss: Any) -> dict[str, Variant]:
    """Both variants, the bare loop first: ratios are to the first."""
    return {BARE: in_bare_loop(size, make, data, loss), OURS: through_trainer(size, make, data)}


def calls(size: Size, variants: dict[str, Callable[[], Tensor]]) -> dict[str, Variant]:
    """Variants that are no training steps: calls that return what they make."""

    def run(call: Callable[[], Tensor]) -> Round:
        clock = StepClock()
        for _ in range(size.batches):
            with clock.profile(FETCH):
                pass
            made = call()
        return Round(clock.steps().quantile(0.5, dim=0), [made.detach().cpu().double()])

    return {name: partial(run, call) for name, call in variants.items()}


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """How far one list of changes is from another, by the length of the other."""
    own, theirs = (torch.cat([part.flatten().double() for part in parts]) for parts in (one, other))
    return float((own - theirs).norm() / theirs.norm())
