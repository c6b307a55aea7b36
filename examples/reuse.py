"""Somebody else's network and data: nothing of lit_kd but the method and an objective.

python examples/reuse.py
"""

import torch
from lightning.pytorch import LightningDataModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_kd import Classifier, MCMIDistill
from lit_kd.objectives import FitNet


class Digits8x8(LightningDataModule):
    """Pairs (image (B, 1, 8, 8), label) of the usual kind."""

    def __init__(self) -> None:
        super().__init__()
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
        self.dataset = TensorDataset(images, torch.tensor(data.target))

    def train_dataloader(self) -> DataLoader:
        """The first 1,400 images."""
        return DataLoader(torch.utils.data.Subset(self.dataset, range(1400)), batch_size=50, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        """The rest."""
        return DataLoader(torch.utils.data.Subset(self.dataset, range(1400, 1797)), batch_size=100)


def network(width: int) -> nn.Sequential:
    """Two convolutions and a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * width, 10),
    )


def adam(parameters: object) -> torch.optim.Adam:
    """An optimizer of our own in place of the paper's recipe."""
    return torch.optim.Adam(parameters, lr=2e-3)  # type: ignore[arg-type]


def main() -> None:
    """Teacher, student with a hint from the teacher's second convolution, accuracy of both."""
    torch.manual_seed(0)
    data = Digits8x8()
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    teacher = network(32)
    trainer = Trainer(max_epochs=5, **settings)
    trainer.fit(Classifier(teacher, num_classes=10, optimizer=adam), datamodule=data)
    objective = FitNet(weight=1.0, kd_weight=1.0, student_layers=["2"], teacher_layers=["2"])
    module = MCMIDistill(
        network(8), teacher, num_classes=10, objective=objective, optimizer=adam, image_shape=(1, 8, 8)
    )
    trainer = Trainer(max_epochs=5, **settings)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data)


if __name__ == "__main__":
    main()
