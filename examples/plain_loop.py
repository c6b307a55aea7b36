"""Distillation in a plain PyTorch loop: of lit_kd only the losses, which are functions of tensors; no Lightning.

A small student sees 100 digits. Alone it learns from their labels; with a teacher that has seen 1,400, also from its
logits.

python examples/plain_loop.py
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lit_kd.losses import kd_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of images, logits and labels


def network(width: int) -> nn.Sequential:
    """Two convolutions and a classifier, for 8x8 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * width, 10),
    )


def shifted(images: Tensor) -> Tensor:
    """Moved by up to a pixel each way."""
    dy, dx = torch.randint(0, 3, (2,)).tolist()
    return F.pad(images, (1, 1, 1, 1))[..., dy : dy + 8, dx : dx + 8]


def train(student: nn.Module, loss: Loss, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Adam on batches of 50."""
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (50,))
        batch = shifted(images[chosen])
        optimizer.zero_grad()
        loss(batch, student(batch), labels[chosen]).backward()
        optimizer.step()
    return student.eval()


@torch.no_grad()
def accuracy(student: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In percent."""
    return 100 * (student(images).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Teacher, student alone, student with the teacher, from the same start; accuracy on 397 other digits."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images).float()[:, None] / 16, torch.tensor(digits.target)
    test = images[1400:], labels[1400:]

    def by_label(batch: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(logits, label)

    torch.manual_seed(0)
    teacher = train(network(16), by_label, images[:1400], labels[:1400], steps=400)

    def by_teacher(batch: Tensor, logits: Tensor, label: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = teacher(batch)
        return 0.1 * F.cross_entropy(logits, label) + 0.9 * kd_loss(logits, teacher_logits, temperature=4.0)

    print(f"teacher    {accuracy(teacher, *test):5.1f} %")
    for name, loss in (("alone", by_label), ("distilled", by_teacher)):
        torch.manual_seed(1)
        student = train(network(4), loss, images[:100], labels[:100], steps=400)
        print(f"{name:10} {accuracy(student, *test):5.1f} %")


if __name__ == "__main__":
    main()
