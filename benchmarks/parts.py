"""Parts of steps by themselves: the codes and the moving average of OBoW, the loss of MiniLM.

    python -m benchmarks.parts --obow
    python -m benchmarks.parts --minilm

--obow, in CPU time: the codes of two levels at K = 8192 beside the two matrix products that they need, and the moving
average of a ResNet-50. --minilm: peak resident memory of value and gradient of the relations at 512 tokens and 48
heads, above that of its inputs, each variant in a process of its own: all heads at once, and as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import alternate, in_new_process, peak_memory, spread, timed
from lit_kd.losses import MINILM_V2, WordDistances, relation_loss
from lit_kd.models import EMATeacher, vision_model


def seconds(function: Callable[[], Any], rounds: int) -> float:
    """Median CPU seconds of a call after a first one."""
    function()
    return spread(float(one["it"][1]) for one in alternate({"it": lambda: timed(function)}, rounds)).median


def obow(images: int, rounds: int) -> None:
    """Codes and moving average."""
    for name, channels in (("ResNet-50", (1024, 2048)), ("ResNet-18", (256, 512))):
        levels = [
            (torch.randn(images, c, size, size).relu(), torch.randn(8192, c).relu())
            for c, size in zip(channels, (12, 5), strict=True)
        ]
        rows = [maps.flatten(2).transpose(1, 2).flatten(0, 1).contiguous() for maps, _ in levels]

        def products(rows: list[Tensor] = rows, levels: list[tuple[Tensor, Tensor]] = levels) -> list[Tensor]:
            return [x @ words.T for x, (_, words) in zip(rows, levels, strict=True)]

        def codes(levels: list[tuple[Tensor, Tensor]] = levels) -> None:
            for maps, words in levels:
                distances = WordDistances(maps, words)
                distances.target(15.0, distances.nearest.mean())

        base, ours = seconds(products, rounds), seconds(codes, rounds)
        print(f"{name}, K = 8192, {images} images: products {1e3 * base:.0f} ms, codes {ours / base:.3f} times")

    student = vision_model("resnet50", num_classes=0)
    teacher = EMATeacher(student, total_steps=100)
    update = seconds(lambda: teacher.update(student), rounds)

    @torch.no_grad()
    def one_by_one() -> None:
        for own, theirs in zip(teacher.module.parameters(), student.parameters(), strict=True):
            own.mul_(0.99).add_(theirs, alpha=0.01)

    loop = seconds(one_by_one, rounds)
    image = torch.rand(2, 3, 160, 160)
    step = seconds(lambda: student(image).mean().backward(), 3) / 2
    print(f"EMA of ResNet-50: {1e3 * update:.1f} ms, tensor by tensor {1e3 * loop:.1f} ms")
    print(
        f"A 160-pixel crop forward and backward: {1e3 * step:.0f} ms; EMA is {update / (128 * step):.2%} of 128 crops"
    )


def relations(chunk: int | None) -> float:
    """MiB that value and gradient of the relations need."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    widths = ((384, True), (768, False))
    student, teacher = (
        {name: torch.randn(4, 512, width, requires_grad=learns) for name in "qkv"} for width, learns in widths
    )
    mask = torch.ones(4, 512)
    first = [{name: vector[:1, :8] for name, vector in one.items()} for one in (student, teacher)]
    relation_loss(first[0], first[1], mask[:1, :8], MINILM_V2, 48)  # what is loaded once
    return peak_memory(lambda: relation_loss(student, teacher, mask, MINILM_V2, 48, chunk=chunk).backward())


def minilm() -> None:
    """The table of memory."""
    whole, ours = (in_new_process(relations, chunk) for chunk in (48, None))
    print(f"all heads at once {whole:.0f} MiB, as it is {ours:.0f} MiB: {ours / whole:.3f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--obow", action="store_true", help="codes and moving average")
    parser.add_argument("--minilm", action="store_true", help="memory of the loss")
    parser.add_argument("--images", type=int, default=8, help="whose codes are measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if not args.obow and not args.minilm:
        parser.error("name what is to be measured: --obow or --minilm")
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {vars(args)}")
    if args.obow:
        obow(args.images, args.rounds)
    if args.minilm:
        minilm()


if __name__ == "__main__":
    main()
