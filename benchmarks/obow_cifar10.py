"""OBoW on real CIFAR-10, sized for a CPU: random network, OBoW over seeds, its ablations, supervised bound.

    python -m benchmarks.obow_cifar10 --root CIFAR10_FOLDER --out runs/obow_cifar10

Every run is the command line with a config of configs/obow and a few words that replace: ``cifar10_small`` pre-trains
the student, which is then tested by k-NN (k = 20, T = 0.07, the 45,000 training images as the bank) and by multinomial
logistic regression on the standardised features of all 50,000, without augmentation, to convergence. ``random`` is the
same network as it is initialised, ``supervised`` the same network on all labels. Ablations: ``vanilla`` (one level, one
crop), ``hard`` (each place is its nearest word). The table holds accuracy on the official test images, mean and
standard deviation over seeds; the curves of a run lie in its folder. Words that it does not know are handed on to every
command. Every finished run leaves a file in ``out`` and is not run again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import seed_everything
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.runs import once, spread
from lit_kd.cli import LitKDCLI
from lit_kd.datamodules import CIFAR10DataModule
from lit_kd.models import load_exported, save_exported, vision_model

VARIANTS: dict[str, list[str]] = {
    "full": [],
    "vanilla": [
        "--model.init_args.levels=1",
        "--model.init_args.border=0",
        "--data.init_args.views.init_args.num_crops=1",
        "--data.init_args.views.init_args.num_patches=0",
    ],
    "hard": ["--model.init_args.inverse_delta=null"],
}
CONFIG = yaml.safe_load((Path(__file__).parents[1] / "configs/obow/cifar10_small.yaml").read_text())
NETWORK: dict[str, Any] = CONFIG["model"]["init_args"]["student"]["init_args"]
SUPERVISED = [
    f"--model.init_args.network.init_args={json.dumps({**NETWORK, 'num_classes': 10})}",
    "--model.init_args.optimizer=torch.optim.AdamW",
    "--model.init_args.optimizer.init_args.lr=4.0e-3",
    "--model.init_args.lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR",
    "--data.init_args.batch_size=128",
]


def run(
    args: argparse.Namespace, config: str, seed: int, name: str, command: str, words: list[str]
) -> dict[str, float]:
    """One command; its logged numbers."""
    common = [
        f"--seed_everything={seed}",
        f"--trainer.logger.init_args.save_dir={args.out}",
        f"--trainer.logger.init_args.version={name}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--data.init_args.root={args.root}",
        "--data.init_args.download=false",
    ]
    cli = LitKDCLI([command, "-c", f"configs/{config}.yaml", *common, *words, *args.words])
    return {key: float(value) for key, value in cli.trainer.callback_metrics.items()}


def fit_and_test(args: argparse.Namespace, config: str, seed: int, name: str, words: list[str]) -> dict[str, float]:
    """Fit, then test the last checkpoint."""
    run(args, config, seed, name, "fit", words)
    saved = (args.out / "cifar10" / name / "checkpoints").glob("*.ckpt")
    last = str(max(saved, key=lambda path: path.stat().st_mtime))
    return run(args, config, seed, name, "test", [*words, "--ckpt_path", last])


def linear(args: argparse.Namespace, export: Path) -> float:
    """Test accuracy of logistic regression on the features of an exported network."""
    data = CIFAR10DataModule(root=args.root, eval_batch_size=500)
    network = load_exported(export)
    sets = []
    for stage, loader in (("fit", data.train_eval_dataloader), ("test", data.test_dataloader)):
        data.setup(stage)
        with torch.inference_mode():
            batches = [(network(data.on_after_batch_transfer(batch, 0)["image"]), batch["label"]) for batch in loader()]
        sets.append([torch.cat(parts).numpy() for parts in zip(*batches, strict=True)])
    (features, labels), (queries, truth) = sets
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(features, labels)
    return float(classifier.score(queries, truth))


def result(args: argparse.Namespace, variant: str, seed: int) -> dict[str, float]:
    """Accuracy by k-NN and by a linear classifier of one run."""
    name = f"{variant}_{seed}"

    def start() -> dict[str, float]:
        epochs = f"--trainer.max_epochs={args.epochs}"
        if variant == "supervised":
            words = [*SUPERVISED, f"--model.init_args.lr_scheduler.init_args.T_max={args.epochs}", epochs]
            numbers = {"linear": fit_and_test(args, "mcmi/cifar10_teacher", seed, name, words)["test/acc"]}
        else:
            export = args.out / "cifar10" / name / "export"
            if variant == "random":
                seed_everything(seed)
                save_exported(vision_model(**NETWORK), export)
                words = [f"--model.init_args.student.init_args.checkpoint={export / 'model.safetensors'}"]
                tested = run(args, "obow/cifar10_small", seed, f"{name}_knn", "test", words)
            else:
                tested = fit_and_test(args, "obow/cifar10_small", seed, name, [*VARIANTS[variant], epochs])
            numbers = {"knn": tested["test/knn20_t0.07_student_acc"], "linear": linear(args, export)}
        return numbers

    return once(args.out, name, start)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10, see CIFAR10DataModule")
    parser.add_argument("--out", type=Path, default=Path("runs/obow_cifar10"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=["random", *VARIANTS, "supervised"])
    args, words = parser.parse_known_args()
    args.words = words
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {vars(args)}")
    print("| network | k-NN | linear | seeds |\n|---|---|---|---|")
    for variant in args.variants:
        runs = [result(args, variant, seed) for seed in args.seeds]
        cells = [spread([100 * one[key] for one in runs if key in one]) for key in ("knn", "linear")]
        print(f"| {variant} | {cells[0]} | {cells[1]} | {len(runs)} |", flush=True)


if __name__ == "__main__":
    main()
