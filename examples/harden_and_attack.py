"""A classifier hardened by defensive distillation, and attacked: naive attacks fail, and it is not robust all the same.

RobustnessReport prints the table and writes it as robustness.md, .json and .png.

python examples/harden_and_attack.py                # into runs/harden_and_attack
python examples/harden_and_attack.py --folder here
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lit_kd import Classifier, DefensiveDistill
from lit_kd.attacks import Protocol
from lit_kd.callbacks import RobustnessReport

T = 20.0  # the temperature of both stages
SETTINGS = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def network() -> nn.Sequential:
    """Two convolutions and a classifier, from 8x8 pixels in [0, 1] to logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def fit(module: Classifier, data: DataLoader) -> nn.Module:
    """Train for 25 epochs; the trained network."""
    Trainer(max_epochs=25, enable_model_summary=False, **SETTINGS).fit(module, data)
    return module.network.eval()


def main(folder: Path) -> None:
    """Undefended network, teacher at T, student at T of its soft labels; the last one under attack."""
    seed_everything(0, verbose=False)
    digits = load_digits()
    pairs = TensorDataset(torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target))
    train = DataLoader(Subset(pairs, range(1400)), batch_size=50, shuffle=True)
    test = DataLoader(Subset(pairs, range(1400, 1797)), batch_size=100)
    adam = partial(torch.optim.Adam, lr=3e-3)

    undefended = fit(Classifier(network(), num_classes=10, optimizer=adam), train)
    teacher = fit(Classifier(network(), num_classes=10, temperature=T, optimizer=adam), train)
    student = DefensiveDistill(network(), teacher, num_classes=10, temperature=T, optimizer=adam)
    fit(student, train)

    attacks = ("noise", "fgsm_naive", "pgd_naive", "fgsm_T", "pgd_T", "pgd_margin", "apgd_dlr", "transfer", "cw")
    effort = {"steps": 20, "cw": {"steps": 50, "search_steps": 3}}
    protocol = Protocol(eps=0.15, eps_grid=(0.05, 0.1, 0.3, 1.0), attacks=attacks, **effort)
    report = RobustnessReport(protocol, undefended=undefended, max_samples=60)
    Trainer(callbacks=[report], default_root_dir=folder, **SETTINGS).test(student, test, verbose=False)
    print(f"In {folder}: robustness.md, robustness.json and, with matplotlib, robustness.png.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/harden_and_attack"))
    main(parser.parse_args().folder)
