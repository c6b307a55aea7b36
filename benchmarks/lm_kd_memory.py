"""Memory and time of the forward KL of a language model, and the size of stored teacher outputs.

    python -m benchmarks.lm_kd_memory [--memory] [--dtype bfloat16] [--train-head]

Value and gradient from the last states of student and teacher (random) through two heads: with the logits of all tokens
at once, once as plain PyTorch writes it (``F.kl_div`` of two log-softmaxes) and once with ``forward_kl``; and with
``chunked_loss``, which calls the teacher's head inside the loss. The heads are frozen, as they are for LoRA;
--train-head trains the student's.

Time: the variants alternate in one process; medians over the rounds with their range, and the median over rounds of
the ratio within a round. --memory: peak resident memory above that of heads and states, each variant in a process of
its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import alternate, compared, in_new_process, peak_memory, timed
from lit_kd.losses import chunked_loss, forward_kl

Inputs = tuple[Tensor, nn.Linear, Tensor, nn.Linear]  # states and head of the student, then the teacher's


def inputs(args: argparse.Namespace) -> Inputs:
    """Random states and heads."""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    student, teacher = (nn.Linear(args.width, args.vocabulary, bias=False, dtype=dtype) for _ in range(2))
    states = torch.randn(2, args.tokens, args.width, dtype=dtype)
    return (
        states[0].clone().requires_grad_(),
        student.requires_grad_(args.train_head),
        states[1].clone(),
        teacher.requires_grad_(False),
    )


def plain(states: Tensor, head: nn.Linear, teacher_states: Tensor, teacher_head: nn.Linear) -> Tensor:
    """Whole logits, PyTorch alone."""
    log_q = head(states).float().log_softmax(1)
    log_p = teacher_head(teacher_states).float().log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def whole(states: Tensor, head: nn.Linear, teacher_states: Tensor, teacher_head: nn.Linear) -> Tensor:
    """Whole logits, lit_kd's divergence."""
    return forward_kl(head(states), teacher_head(teacher_states), reduction="sum")


def chunked(states: Tensor, head: nn.Linear, teacher_states: Tensor, teacher_head: nn.Linear, chunk: int) -> Tensor:
    """Logits of some rows at a time."""

    def loss(logits: Tensor, rows: slice) -> Tensor:
        return forward_kl(logits, teacher_head(teacher_states[rows]), reduction="sum")

    return chunked_loss(loss, states, head, chunk)


def variants(args: argparse.Namespace) -> dict[str, Callable[..., Tensor]]:
    """What is compared, the first being what ratios are of."""
    chunks = {f"chunked_loss, {chunk} rows": partial(chunked, chunk=chunk) for chunk in args.chunks}
    return {"whole, forward_kl": whole, "whole, F.kl_div": plain, **chunks}


def peak(args: argparse.Namespace, name: str) -> float:
    """MiB that value and gradient need."""
    torch.set_num_threads(args.threads)
    run = variants(args)[name]
    run(*inputs(argparse.Namespace(**vars(args) | {"vocabulary": 100}))).backward()  # what is loaded once
    given = inputs(args)
    return peak_memory(lambda: run(*given).backward())


def memory(args: argparse.Namespace) -> None:
    """The table of memory."""
    first = 0.0
    for name in variants(args):
        number = in_new_process(peak, args, name)
        first = first or number
        print(f"{name:<24} {number:7.0f} MiB  {number / first:.3f}", flush=True)


def times(args: argparse.Namespace) -> None:
    """The table of seconds."""
    given = inputs(args)
    states, head = given[:2]

    def step(run: Callable[..., Tensor]) -> Tensor:
        states.grad = head.weight.grad = None
        return timed(lambda: run(*given).backward())

    rounds = alternate({name: partial(step, run) for name, run in variants(args).items()}, args.rounds)
    for name, one in compared(list(rounds)).items():
        print(f"{name:<24} {one.seconds} s  {one.ratio.median:.3f}")


def sizes(args: argparse.Namespace) -> None:
    """What the teacher's outputs for a reply of 330 tokens take, uncompressed."""
    full, top = (330 * args.vocabulary * 4, 330 * 128 * (4 + 4))
    print(
        f"330 tokens, float32 logits {full / 1e6:.1f} MB, top 128 (float32, int32) {top / 1e6:.2f} MB: 1/{full // top}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--width", type=int, default=896)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--chunks", type=int, nargs="*", default=[512, 256])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--train-head", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {vars(args)}")
    sizes(args)
    memory(args) if args.memory else times(args)


if __name__ == "__main__":
    main()
