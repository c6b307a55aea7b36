"""Cost of the parts of an on-policy step.

    python -m benchmarks.on_policy --dac [--norm rest] [--threads 2]

--dac: value and gradient of DAC-KL with its sub-network, and of the forward KL, of random logits of student and teacher
that are there already. The variants alternate in one process; medians over the rounds with their range, and the median
over rounds of the ratio within a round. All rows at once, and in slices as ``chunked_loss`` makes them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from lit_kd.losses import DACKL, forward_kl


def in_slices(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor, rows: int) -> None:
    """Value and gradient of a sum over rows, slice by slice."""
    for first in range(0, len(student), rows):
        leaf = student[first : first + rows].detach().requires_grad_()
        loss(leaf, teacher[first : first + rows]).backward()


def dac(args: argparse.Namespace) -> None:
    """The table of DAC-KL."""
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, args.tokens, args.vocabulary)
    network = DACKL(norm=args.norm, mask=args.mask)
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "forward_kl": lambda z_s, z_t: forward_kl(z_s, z_t, reduction="sum"),
        "DACKL": lambda z_s, z_t: network(z_s, z_t).loss.sum(),
    }
    for rows in args.chunks:
        seconds: dict[str, list[float]] = {name: [] for name in losses}
        for _ in range(args.rounds):
            for name, loss in losses.items():
                network.zero_grad()
                start = time.perf_counter()
                in_slices(loss, student, teacher, rows)
                seconds[name].append(time.perf_counter() - start)
        for name, values in seconds.items():
            ratio = median(a / b for a, b in zip(values, seconds["forward_kl"], strict=True))
            found = f"{median(values):6.2f} s ({min(values):.2f}-{max(values):.2f})  {ratio:.2f}"
            print(f"{name:<12} {rows:5} rows at a time {found}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dac", action="store_true", help="DAC-KL against the forward KL")
    parser.add_argument("--norm", choices=("renorm", "rest", "none"), default="renorm")
    parser.add_argument("--mask", choices=("soft", "hard", "straight_through"), default="soft")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--chunks", type=int, nargs="*", default=[2048, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if not args.dac:
        parser.error("name what is to be measured: --dac")
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {vars(args)}")
    dac(args)


if __name__ == "__main__":
    main()
