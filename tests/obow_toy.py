"""A data module with a teacher's view and crops, and networks with two small maps."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from toy import quiet_trainer

from lit_kd.datamodules import ImageDataModule
from lit_kd.datamodules.augment import counter_uniform
from lit_kd.datamodules.loading import InMemoryImages
from lit_kd.methods import OBoWModule

SIZE = 16
GROUPS = ((2, 12), (3, 8))  # crops an image and their size


class CropImages(ImageDataModule):
    """64 textured images of four classes; crops at counted places, image-major."""

    image_size = SIZE
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    crop_padding, flip = 0, False
    num_classes = 4
    channels = 3

    def load(self, split: str) -> InMemoryImages:
        generator = torch.Generator().manual_seed(len(split))
        labels = torch.arange(64) % 4
        patterns = torch.rand(4, self.channels, 4, 4, generator=generator).repeat(1, 1, SIZE // 4, SIZE // 4)
        noise = torch.rand(64, self.channels, SIZE, SIZE, generator=generator)
        pixels = (255 * (0.7 * patterns[labels] + 0.3 * noise)).to(torch.uint8)
        return InMemoryImages(pixels, labels, ["a", "b", "c", "d"])

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return {**batch, "crops": crops(batch)} if "visit" in batch else batch


def crops(batch: dict[str, Tensor]) -> list[Tensor]:
    groups = []
    for group, (number, size) in enumerate(GROUPS):
        places = counter_uniform(group, batch["visit"], batch["index"], 2 * number).view(-1, number, 2)
        corner = (places * (SIZE - size + 1)).long()
        cut = [
            image[:, top : top + size, left : left + size]
            for image, corners in zip(batch["image"], corner.tolist(), strict=True)
            for top, left in corners
        ]
        groups.append(torch.stack(cut))
    return groups


def network(norm: bool = False, width: int = 6) -> nn.Sequential:
    """Maps of 8x8 (layer "1") and 6x6 (layer "2") of 16x16 images, without batch norm unless asked for."""

    def layer(inputs: int, outputs: int, stride: int, padding: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs) if norm else nn.Identity(), nn.ReLU())

    return nn.Sequential(nn.Identity(), layer(3, width, 2, 1), layer(width, 2 * width, 1, 0))


def module(student: nn.Module | None = None, **settings: Any) -> OBoWModule:
    """Two levels, 32 words, and a rate at which a few steps show."""
    if student is None:
        student = network()
    defaults: dict[str, Any] = {
        "levels": ["1", "2"],
        "num_words": 32,
        "image_shape": (3, SIZE, SIZE),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1),
    }
    return OBoWModule(student, **{**defaults, **settings})


def state(obow: OBoWModule) -> dict[str, Tensor]:
    """A copy of all that is saved."""
    return {key: value.clone() for key, value in obow.state_dict().items()}


def moving(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """What only an optimizer step may move, batch statistics apart."""
    return {key: value for key, value in states.items() if key.startswith(("teacher.", "vocabularies."))}


def fit(obow: LightningModule, data: Any = None, **settings: Any) -> Trainer:
    torch.set_num_threads(1)
    trainer = quiet_trainer(**{"max_epochs": 1, **settings})
    trainer.fit(obow, datamodule=data or CropImages(batch_size=8))
    return trainer


def same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Record(Callback):
    """The state after each batch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: OBoWModule, *args: Any) -> None:
        self.states.append(state(pl_module))
        self.steps.append(trainer.global_step)
