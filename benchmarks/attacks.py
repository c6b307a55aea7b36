"""Time of the attacks on resnet20 and CIFAR-10 test images, against bare loops and against torchattacks.

    python -m benchmarks.attacks --root CIFAR10_FOLDER --checkpoint RESNET20_WEIGHTS

The variants of a group alternate, a round each; the table holds medians over rounds with their range, and the median of
the ratio to the group's base within a round. Attack rate and distances are those of the last round, over samples that
are classified correctly; the median L2 counts a failure as infinite. The bare loops make the same forward and backward
passes over a frozen network, and the same updates, without checks and bookkeeping. torchattacks is timed if installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import alternate, compared, timed
from lit_kd.attacks import AttackResult, TorchAttack, carlini_wagner, fgsm, pgd
from lit_kd.datamodules import CIFAR10DataModule
from lit_kd.models import vision_model

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 20

Attack = Callable[[nn.Module, Tensor, Tensor], AttackResult | Tensor]  # a bare loop gives the images alone


def bare_fgsm(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    """Forward, backward, and the forward pass that judges."""
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), label, reduction="sum"), x)
    adversarial = (image + EPS * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        model(adversarial)
    return adversarial


def bare_pgd(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    """Forward and backward of each step, and the forward pass that judges."""
    x = image.clone()
    for _ in range(STEPS):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), label, reduction="sum"), x)
        x = x.detach() + ALPHA * gradient.sign()
        x = torch.minimum(torch.maximum(x, image - EPS), image + EPS).clamp(0, 1)
    with torch.no_grad():
        model(x)
    return x


def our_pgd(stop_early: bool) -> Attack:
    """PGD of `STEPS` steps from the image itself."""
    return lambda model, image, label: pgd(
        model, image, label, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False, stop_early=stop_early
    )


def groups() -> dict[str, dict[str, Attack]]:
    """Variants by group; the first of a group is its base."""
    minimal: dict[str, Attack] = {
        "lit_kd CW": carlini_wagner,
        "lit_kd CW, 20 steps, 3 rounds": lambda *batch: carlini_wagner(*batch, steps=20, search_steps=3),
    }
    one_step: dict[str, Attack] = {"bare FGSM": bare_fgsm, "lit_kd FGSM": lambda *batch: fgsm(*batch, eps=EPS)}
    if find_spec("torchattacks"):
        one_step["torchattacks FGSM"] = TorchAttack("torchattacks.FGSM", {"eps": EPS})
        for c, steps in ((1, 50), (1, 200)):
            settings = {"c": c, "steps": steps, "lr": 0.01}
            minimal[f"torchattacks CW, c={c}, {steps} steps"] = TorchAttack("torchattacks.CW", settings)
    return {
        "one step": one_step,
        f"{STEPS} steps": {"bare PGD": bare_pgd, "lit_kd PGD, all steps": our_pgd(stop_early=False)},
        "survivors": {"lit_kd PGD, all steps": our_pgd(False), "lit_kd PGD, survivors": our_pgd(True)},
        "minimal L2": minimal,
    }


def describe(found: AttackResult | Tensor) -> str:
    """Attack rate and median distance."""
    if isinstance(found, Tensor):
        return ""
    distance = found.l2.where(found.success, torch.inf)
    return f"success {found.success.double().mean():7.2%}, median L2 {distance.median():.4f}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10, see CIFAR10DataModule")
    parser.add_argument("--checkpoint", required=True, help="weights of a resnet20 for CIFAR-10")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--groups", nargs="+", default=list(groups()), choices=list(groups()))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the published weights
    model = vision_model("resnet20", 10, checkpoint=arguments.checkpoint, mean=mean, std=std)
    model.eval().requires_grad_(False)
    data = CIFAR10DataModule(root=arguments.root, eval_batch_size=10_000)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    # The files are sorted by class: twice as many as needed, spread over the set, of which most are classified rightly.
    spread = torch.linspace(0, len(batch["label"]) - 1, 2 * arguments.samples).long()
    image, label = (batch[name][spread] for name in ("image", "label"))
    with torch.no_grad():
        correct = (model(image).argmax(1) == label).nonzero().squeeze(1)
    chosen = correct[torch.linspace(0, len(correct) - 1, arguments.samples).long()]
    image, label = image[chosen], label[chosen]

    print(f"torch {torch.__version__}, {vars(arguments)}, {len(label)} images")
    for group in arguments.groups:
        variants = groups()[group]
        found: dict[str, AttackResult | Tensor] = {}

        def run(name: str, variants: dict[str, Attack] = variants, found: dict[str, Any] = found) -> None:
            found[name] = variants[name](model, image, label)

        rounds = alternate({name: partial(timed, partial(run, name)) for name in variants}, arguments.rounds)
        for name, one in compared(list(rounds)).items():
            print(f"{group:<10} {name:<30} {one.seconds} s  ratio {one.ratio.median:.3f}  {describe(found[name])}")


if __name__ == "__main__":
    main()
