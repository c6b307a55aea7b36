"""Time of a step of MiniLM: the obvious implementation, and lit_kd's.

    python -m benchmarks.minilm_step [--relations minilm_v2]
    python -m benchmarks.minilm_step --memory

The obvious implementation runs teacher and student whole, with eager attention and ``output_attentions=True``; for v1
it compares the log of the last layers' attention probabilities and computes V-V from a hook on the value projection,
for v2 it computes Q-Q, K-K and V-V from hooks. Both have the same networks (BERT shapes, random weights), batches and
AdamW, and run in a bare loop; the two alternate, a round each. The table holds the median over rounds of a round's
median step, the range, the median over rounds of the ratio, and tokens a second. Dropout is off, as the logarithm of
eager probabilities after dropout is not finite.

--memory: peak resident memory of one forward and backward of the loss alone at 512 tokens and 48 relation heads, above
that of its inputs, each variant in a process of its own: without chunks, and as it is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from transformers import BertConfig, BertModel

from lit_kd.losses import MINILM_V2, relation_loss
from lit_kd.methods import MiniLMDistill
from lit_kd.models.text import TextBatch

Step = Callable[[TextBatch], None]


def network(shape: tuple[int, int], attention: str) -> Any:
    """BERT of some layers and width with random weights."""
    layers, hidden = shape
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(layers)
    return BertModel._from_config(config, attn_implementation=attention)


def relation(x: Tensor, y: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Log of a self-attention relation, (B, A, S, S)."""
    x, y = (z.unflatten(2, (heads, -1)).transpose(1, 2) for z in (x, y))
    scores = x @ y.mT / x.shape[3] ** 0.5
    return scores.masked_fill(mask[:, None, None] == 0, torch.finfo(scores.dtype).min).log_softmax(3)


def kl(log_p: Tensor, log_r: Tensor, mask: Tensor) -> Tensor:
    """KL over keys, mean over heads and tokens, mean over texts."""
    rows = (log_p.exp() * (log_p - log_r)).sum(3).mean(1) * mask  # (B, S)
    return (rows.sum(1) / mask.sum(1)).mean()


def obvious(args: argparse.Namespace) -> Step:
    """Whole networks with all attentions."""
    teacher = network(args.teacher, "eager").requires_grad_(False).eval()
    student = network(args.student, "eager").train()
    kept: list[dict[str, Tensor]] = []
    for one in (teacher, student):
        vectors: dict[str, Tensor] = {}
        for name in ("query", "key", "value"):
            part = getattr(one.encoder.layer[-1].attention.self, name)
            part.register_forward_hook(lambda m, a, out, name=name, vectors=vectors: vectors.update({name[0]: out}))
        kept.append(vectors)
    optimizer = AdamW(student.parameters(), lr=1e-4)

    def step(batch: TextBatch) -> None:
        mask = batch["attention_mask"]
        with torch.no_grad():
            target = teacher(**batch, output_attentions=True).attentions[-1]
        output = student(**batch, output_attentions=True).attentions[-1]
        theirs, ours = kept
        if args.relations == "minilm":
            loss = kl(target.clamp(min=1e-30).log(), output.clamp(min=1e-30).log(), mask)
            pairs, heads = ["v"], student.config.num_attention_heads
        else:
            loss, pairs, heads = torch.zeros(()), ["q", "k", "v"], args.heads
        for x in pairs:
            target, output = (relation(vectors[x], vectors[x], mask, heads) for vectors in (theirs, ours))
            loss = loss + kl(target, output, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(args: argparse.Namespace) -> Step:
    """MiniLMDistill's loss in the same loop."""
    heads = None if args.relations == "minilm" else args.heads
    student, teacher = network(args.student, "sdpa"), network(args.teacher, "sdpa")
    module = MiniLMDistill(student, teacher, relations=args.relations, heads=heads).train()
    optimizer = AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)

    def step(batch: TextBatch) -> None:
        optimizer.zero_grad()
        module.relation_loss(batch).backward()
        optimizer.step()

    return step


def steps(args: argparse.Namespace) -> None:
    """The table of steps."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(args.length // 2, args.length + 1, (args.batch_size,), generator=generator)
    lengths[0] = args.length
    mask = (torch.arange(args.length) < lengths[:, None]).long()
    ids = torch.randint(1000, 30000, mask.shape, generator=generator) * mask
    batch = {"input_ids": ids, "attention_mask": mask}
    variants = {"obvious": obvious(args), "lit_kd": ours(args)}
    rounds = torch.tensor(
        [[round_of(step, batch, args.steps) for step in variants.values()] for _ in range(args.rounds)]
    )
    print(f"{'':<9} {'ms a step':>9} {'range':>13}  {'ratio':>5}  tokens a second")
    for column, name in enumerate(variants):
        times = rounds[:, column]
        median, ratio = float(times.median()), float((times / rounds[:, 0]).median())
        spread = f"{1e3 * times.min():.0f}-{1e3 * times.max():.0f}"
        print(f"{name:<9} {1e3 * median:9.0f} {spread:>13}  {ratio:5.3f}  {float(mask.sum()) / median:.0f}")


def round_of(step: Step, batch: TextBatch, count: int) -> float:
    """Median seconds of some steps after a first one."""
    times = []
    for _ in range(count + 1):
        start = time.perf_counter()
        step(batch)
        times.append(time.perf_counter() - start)
    return float(torch.tensor(times[1:]).median())


def peak(chunk: int | None, results: Any) -> None:
    """Megabytes that value and gradient of the loss need."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    widths = ((384, True), (768, False))
    student, teacher = (
        {name: torch.randn(4, 512, width, requires_grad=learns) for name in "qkv"} for width, learns in widths
    )
    mask = torch.ones(4, 512)
    first = [{name: vector[:1, :8] for name, vector in one.items()} for one in (student, teacher)]
    relation_loss(first[0], first[1], mask[:1, :8], MINILM_V2, 48)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    relation_loss(student, teacher, mask, MINILM_V2, 48, chunk=chunk).backward()
    results.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def memory() -> None:
    """The table of memory."""
    context = multiprocessing.get_context("spawn")
    numbers = {}
    for name, chunk in (("one chunk", 48), ("lit_kd", None)):
        results = context.SimpleQueue()
        process = context.Process(target=peak, args=(chunk, results))
        process.start()
        numbers[name] = results.get()
        process.join()
        print(f"{name:<10} {numbers[name]:8.0f} MiB  {numbers[name] / numbers['one chunk']:.3f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--relations", choices=("minilm", "minilm_v2"), default="minilm")
    parser.add_argument("--heads", type=int, default=48, help="relation heads of minilm_v2")
    parser.add_argument("--teacher", type=int, nargs=2, default=(12, 768), help="layers and width")
    parser.add_argument("--student", type=int, nargs=2, default=(6, 384))
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {vars(args)}")
    memory() if args.memory else steps(args)


if __name__ == "__main__":
    main()
