"""Few-shot distillation on real CIFAR-10 from an MLL teacher and from an MCMI teacher.

    python -m benchmarks.mcmi_few_shot --root CIFAR10_FOLDER --checkpoint RESNET56_WEIGHTS --out runs/mcmi_few_shot

1. ``adapted``: resnet56 from the file, cross-entropy on these images.
2. From ``adapted``, with equal epochs and schedule: ``mll`` (lambda = 0, cross-entropy), ``mcmi`` (lambda > 0, frozen
   centroids, as in the paper) and ``mcmi_epoch`` (centroids taken anew before each epoch).
3. resnet20 on ``train_fraction`` of the training images by KD from each, and by cross-entropy alone, over several
   seeds. A seed fixes subset, initialisation and order, so the runs of one seed are paired. Last-epoch test accuracy.

Every finished run leaves a file in ``out`` and is not run again.
"""

import argparse
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.runs import once, spread
from lit_kd.datamodules import CIFAR10DataModule
from lit_kd.methods import Classifier, MCMIDistill, MCMITeacher
from lit_kd.models import VisionModel, vision_model


def network(name: str, checkpoint: str | Path | None = None) -> VisionModel:
    """A CIFAR-10 network in the memory format that is fast on a CPU."""
    return vision_model(name, num_classes=10, checkpoint=checkpoint, channels_last=True)


def run(out: Path, name: str, epochs: int, module: LightningModule, data: LightningDataModule) -> dict[str, float]:
    """Fit and test once; the numbers, and the checkpoint under ``out``."""
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    numbers = {key: float(value) for key, value in trainer.callback_metrics.items()}
    numbers |= {key: float(value) for key, value in trainer.test(module, data, verbose=False)[0].items()}
    trainer.save_checkpoint(out / f"{name}.ckpt", weights_only=True)
    return numbers


def teacher(
    args: argparse.Namespace,
    name: str,
    checkpoint: str | Path,
    epochs: int,
    weight: float = 0.0,
    centroids: Literal["frozen", "epoch"] = "frozen",
) -> dict[str, float]:
    """One stage of the teacher, seeded alike for all branches."""

    def start() -> dict[str, float]:
        seed_everything(0)
        module = MCMITeacher(
            network("resnet56", checkpoint),
            num_classes=10,
            weight=weight,
            centroids=centroids,
            measure_every_n_epochs=epochs,
            optimizer=lambda parameters: SGD(parameters, lr=args.teacher_lr, momentum=0.9, weight_decay=5e-4),
            lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=epochs),
        )
        return run(args.out, name, epochs, module, CIFAR10DataModule(root=args.root, batch_size=64, seed=0))

    return once(args.out, name, start)


def student(args: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """One student; ``name`` is its teacher, or ``alone``."""

    def start() -> dict[str, float]:
        data = CIFAR10DataModule(root=args.root, batch_size=64, seed=seed, train_fraction=args.train_fraction)
        seed_everything(seed)
        learner = network("resnet20")
        module: LightningModule
        if name == "alone":
            module = Classifier(learner, num_classes=10)
        else:
            module = MCMIDistill(learner, network("resnet56", args.out / f"{name}.ckpt"), num_classes=10)
        return run(args.out, f"student_{name}_{seed}", args.student_epochs, module, data)

    return once(args.out, f"student_{name}_{seed}", start)


def table(teachers: dict[str, dict[str, float]], students: dict[str, list[float]]) -> str:
    """Markdown of the result: teachers on the test and training set, students' mean, spread and single runs."""
    lines = [
        "| teacher | test accuracy | CMI (nats, train) | log-likelihood (nats, train) | student accuracy | per seed |",
        "|---|---|---|---|---|---|",
    ]
    for name, accuracy in students.items():
        own: dict[str, Any] = teachers.get(name, {})
        numbers = [
            own.get("test/acc", float("nan")) * 100,
            own.get("train_set/cmi"),
            own.get("train_set/log_likelihood"),
        ]
        left = [f"{numbers[0]:.2f}", f"{numbers[1]:.4f}", f"{numbers[2]:.4f}"] if own else ["-"] * 3
        right = [spread(accuracy), ", ".join(f"{value:.2f}" for value in accuracy)]
        lines.append("| " + " | ".join([name, *left, *right]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10, see CIFAR10DataModule")
    parser.add_argument("--checkpoint", required=True, help="weights of a resnet56 for CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("runs/mcmi_few_shot"))
    parser.add_argument("--adapt-epochs", type=int, default=1)
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--student-epochs", type=int, default=36)
    parser.add_argument("--teacher-lr", type=float, default=0.02)
    parser.add_argument("--weight", type=float, default=0.25, help="lambda")
    parser.add_argument("--train-fraction", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teachers", nargs="+", default=["mll", "mcmi", "mcmi_epoch"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {vars(args)}")
    teacher(args, "adapted", args.checkpoint, args.adapt_epochs)
    branches: dict[str, dict[str, Any]] = {
        "mll": {},
        "mcmi": {"weight": args.weight},
        "mcmi_epoch": {"weight": args.weight, "centroids": "epoch"},
    }
    teachers = {
        name: teacher(args, name, args.out / "adapted.ckpt", args.teacher_epochs, **branches[name])
        for name in args.teachers
    }
    students = {
        name: [student(args, name, seed)["test/acc"] * 100 for seed in range(args.seeds)]
        for name in (*args.teachers, "alone")
    }
    print(table(teachers, students))


if __name__ == "__main__":
    main()
