"""Defensive distillation on real CIFAR-10 over temperatures, and its honest evaluation.

    python -m benchmarks.defensive_temperatures --root CIFAR10_FOLDER --out runs/defensive_temperatures

For each T a teacher is trained at T from scratch and a student of the same architecture on its soft labels at T; the
teacher at T = 1 is the undefended network. All have the same data, order and schedule, Adam and no augmentation. Every
student and the undefended network are attacked by the same protocol (lit_kd.attacks), with the undefended network and
the student's own teacher as sources of transferred attacks. Every finished run leaves a file in ``out`` and is not run
again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from benchmarks.mcmi_few_shot import run
from benchmarks.runs import once
from lit_kd.attacks import Protocol
from lit_kd.callbacks import RobustnessReport
from lit_kd.datamodules import CIFAR10DataModule
from lit_kd.methods import Classifier, DefensiveDistill
from lit_kd.models import VisionModel, vision_model

# Columns of the table: rows of the report.
ATTACKS = (
    "noise",
    "fgsm_naive",
    "pgd_naive",
    "fgsm_T",
    "pgd_T",
    "pgd_margin",
    "transfer_undefended",
    "transfer_teacher",
    "cw",
    "autoattack",
    "autoattack_square",
)


def network(args: argparse.Namespace, checkpoint: Path | None = None) -> VisionModel:
    """The paper's CNN, narrower, without dropout."""
    settings = {"width": args.width, "drop_rate": 0.0}
    return vision_model("papernot_cnn", 10, checkpoint=checkpoint, channels_last=True, model_kwargs=settings)


def data(args: argparse.Namespace) -> CIFAR10DataModule:
    """CIFAR-10 without augmentation."""
    return CIFAR10DataModule(root=args.root, batch_size=128, seed=0, augment=False)


def module(args: argparse.Namespace, role: str, temperature: float, trained: bool) -> Classifier:
    """Teacher or student at a temperature, new or from its checkpoint."""

    def optimizer(parameters: Any) -> Optimizer:
        return Adam(parameters, lr=1e-3)

    def scheduler(optimizer: Optimizer) -> LRScheduler:
        return CosineAnnealingLR(optimizer, T_max=args.epochs)

    own = network(args, args.out / f"{role}_T{temperature:g}.ckpt" if trained else None)
    recipe: dict[str, Any] = {"temperature": temperature, "optimizer": optimizer, "lr_scheduler": scheduler}
    if role == "teacher":
        return Classifier(own, 10, **recipe)
    return DefensiveDistill(own, network(args, args.out / f"teacher_T{temperature:g}.ckpt"), 10, **recipe)


def train(args: argparse.Namespace, role: str, temperature: float) -> None:
    """Fit and test once."""

    def start() -> dict[str, float]:
        seed_everything({"teacher": 0, "student": 1}[role])
        name = f"{role}_T{temperature:g}"
        return run(args.out, name, args.epochs, module(args, role, temperature, trained=False), data(args))

    once(args.out, f"{role}_T{temperature:g}", start)


def attack(args: argparse.Namespace, role: str, temperature: float) -> dict[str, Any]:
    """The robustness report of one network."""
    folder = args.out / f"{role}_T{temperature:g}_attacked"
    if not (folder / "robustness.json").is_file():
        undefended: nn.Module | None = None
        if role == "student":
            undefended = network(args, args.out / "teacher_T1.ckpt")
        protocol = Protocol(steps=args.steps, survivors_only=False)
        report = RobustnessReport(
            protocol, undefended, baseline=False, max_samples=args.samples, batch_size=args.batch_size
        )
        trainer = Trainer(
            accelerator="cpu", logger=False, callbacks=[report], default_root_dir=folder, enable_progress_bar=False
        )
        trainer.test(module(args, role, temperature, trained=True), data(args), verbose=False)
    return json.loads((folder / "robustness.json").read_text())["networks"]["module"]


def cell(report: dict[str, Any], row: str) -> str:
    """Accuracy in % under an attack; for Carlini-Wagner its success and the median L2."""
    found = report["rows"].get(row)
    if found is None:
        return "-"
    if row == "cw":
        return f"{100 * found['success_rate']:.1f} %, L2 {found['l2_median']:.3f}"
    return f"{100 * found['accuracy']:.1f}"


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a network."""
    head = ["network", "clean", *ATTACKS, "zero gradients", "worst case"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, report in reports.items():
        worst = report["headline"]["robust_accuracy"]
        cells = [f"{100 * report['clean']['accuracy']:.1f}", *(cell(report, row) for row in ATTACKS)]
        cells.append(f"{100 * report['rows']['fgsm_naive']['zero_gradient_fraction']:.1f}")
        cells.append(f"**{100 * worst['accuracy']:.1f}** [{', '.join(f'{100 * x:.1f}' for x in worst['interval_95'])}]")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10, see CIFAR10DataModule")
    parser.add_argument("--out", type=Path, default=Path("runs/defensive_temperatures"))
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1, 5, 20, 50, 100])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=250, help="of the attacks")
    parser.add_argument("--steps", type=int, default=40, help="of PGD and APGD")
    parser.add_argument("--train-only", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {vars(args)}", flush=True)
    train(args, "teacher", 1.0)
    for temperature in args.temperatures:
        train(args, "teacher", temperature)
        train(args, "student", temperature)
    if not args.train_only:
        reports = {"undefended": attack(args, "teacher", 1.0)}
        reports |= {f"T = {temperature:g}": attack(args, "student", temperature) for temperature in args.temperatures}
        print(table(reports))


if __name__ == "__main__":
    main()
