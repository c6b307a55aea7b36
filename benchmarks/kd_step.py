"""Time of a distillation step, resnet56 to resnet20: bare PyTorch, then lit_kd through Lightning with three objectives.

All variants get the same batches in the same order (random 32x32 pixels in memory, not augmented) and the same SGD.
A step lasts from the end of one batch to the end of the next, so fetching the batch, logging and hooks count. The
variants alternate, a round each; a round's first steps are not counted. The table holds the median over rounds of a
round's median step, the range of these medians, and the median over rounds of the ratio to the base in that round.
The ratio is also given for CPU time of all threads, which other processes on the machine disturb less.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor
from torch.optim import SGD

from benchmarks.input_pipeline import RandomCIFAR10
from lit_kd.losses import kd_loss
from lit_kd.methods import MCMIDistill
from lit_kd.models import vision_model
from lit_kd.objectives import CRD, KD, Objective, ReviewKD

WARM_UP = 4  # steps of each round: the first allocates the momentum and sets CRD's constant

Run = Callable[[int], Tensor]  # from a number of steps to the median of their seconds: wall and CPU time, (2,)


class Clock(Callback):
    """Wall and CPU time at the end of each batch."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Read the clocks."""
        self.times.append((time.perf_counter(), time.process_time()))

    def step(self) -> Tensor:
        """Median seconds of a step after the warm-up, (2,)."""
        return torch.tensor(self.times, dtype=torch.float64)[WARM_UP - 1 :].diff(dim=0).quantile(0.5, dim=0)


def method(objective: Objective, channels_last: bool) -> MCMIDistill:
    """The module with the same start for each objective."""
    seed_everything(0, verbose=False)
    teacher, student = (
        vision_model(name, num_classes=10, channels_last=channels_last) for name in ("resnet56", "resnet20")
    )
    return MCMIDistill(student, teacher, num_classes=10, objective=objective)


def bare(module: MCMIDistill, data: RandomCIFAR10) -> Run:
    """A plain loop over the networks of `module`, with the terms of KD()."""
    student, teacher = module.student.train(), module.teacher.module

    def run(steps: int) -> Tensor:
        clock = Clock()
        optimizer = SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        for number, batch in enumerate(data.train_dataloader()):
            if number == WARM_UP + steps:
                break
            batch = data.on_after_batch_transfer(batch, 0)
            with torch.no_grad():
                target = teacher(batch["image"])
            logits = student(batch["image"])
            loss = 0.9 * kd_loss(logits, target, 4.0) + 0.1 * F.cross_entropy(logits, batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            clock.on_train_batch_end()
        return clock.step()

    return run


def lightning(module: MCMIDistill, data: RandomCIFAR10) -> Run:
    """The module in a Trainer without logger, checkpoints and progress bar."""

    def run(steps: int) -> Tensor:
        clock = Clock()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=WARM_UP + steps,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        return clock.step()

    return run


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true", help="memory format of both networks")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")  # Lightning's advice on workers and devices
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    seed_everything(0, verbose=False)
    data = RandomCIFAR10(batch_size=arguments.batch_size, augment=False)
    data.setup("fit")
    modules = [method(objective, arguments.channels_last) for objective in (KD(), KD(), CRD(), ReviewKD())]
    names = ("bare PyTorch, KD", "lit_kd, KD", "lit_kd, CRD", "lit_kd, ReviewKD")
    runs = [bare(modules[0], data), *(lightning(module, data) for module in modules[1:])]
    rounds = torch.stack(  # (rounds, variants, 2)
        [torch.stack([run(arguments.steps) for run in runs]) for _ in range(arguments.rounds)]
    )
    for plain, ours in zip(modules[0].student.parameters(), modules[1].student.parameters(), strict=True):
        torch.testing.assert_close(ours, plain)  # both have done the same work

    print(f"torch {torch.__version__}, {vars(arguments)}")
    print(f"{'':<17} {'ms a step':>9} {'range':>13}  {'ratio':>5} {'(CPU)':>7}")
    for column, (name, base) in enumerate(zip(names, (0, 0, 1, 1), strict=True)):
        wall = 1000 * rounds[:, column, 0]
        ratio, cpu_ratio = (rounds[:, column] / rounds[:, base]).quantile(0.5, dim=0).tolist()
        spread = f"{wall.min():.1f}-{wall.max():.1f}"
        print(f"{name:<17} {wall.quantile(0.5):9.1f} {spread:>13}  {ratio:5.3f} ({cpu_ratio:.3f}) of {names[base]}")


if __name__ == "__main__":
    main()
