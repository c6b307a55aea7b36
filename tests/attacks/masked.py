"""The mixture of section 2.5 of the defensive specification: a network whose gradients are masked at T = 20.

Ten Gaussian classes in [0, 1]^64, an MLP 64-128-128-10, teacher and student at temperature T, 3000 steps of Adam each.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_kd.losses import soft_cross_entropy


class Mixture(NamedTuple):
    image: Tensor  # (500, 1, 8, 8) test samples
    label: Tensor
    undefended: nn.Module
    teacher: nn.Module
    student: nn.Module


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def sample(count: int, centres: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    label = torch.randint(10, (count,), generator=generator)
    pixels = centres[label] + 0.1 * torch.randn(count, 64, generator=generator)
    return pixels.clamp(0, 1).view(-1, 1, 8, 8), label


def train(seed: int, image: Tensor, label: Tensor, temperature: float, teacher: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(seed)
    network = mlp()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3000):
        rows = torch.randint(len(image), (128,), generator=generator)
        x, logits = image[rows], network(image[rows])
        if teacher is None:
            loss = F.cross_entropy(logits / temperature, label[rows])
        else:
            with torch.no_grad():
                target = teacher(x)
            loss = soft_cross_entropy(logits, target, temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@cache
def mixture(temperature: float = 20.0) -> Mixture:
    generator = torch.Generator().manual_seed(0)
    centres = 0.5 + 0.35 * (torch.rand(10, 64, generator=generator) - 0.5)
    train_set, test_set = sample(2000, centres, generator), sample(500, centres, generator)
    undefended = train(1, *train_set, temperature=1.0)
    teacher = train(2, *train_set, temperature=temperature)
    student = train(3, *train_set, temperature=temperature, teacher=teacher)
    return Mixture(*test_set, undefended, teacher, student)
