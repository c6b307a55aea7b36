"""The project's own data module: scikit-learn's digits as 3x16x16 pixels in [0, 1]."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset


class Digits(LightningDataModule):
    """Pairs (image, label) of the usual kind; the first 1,400 images are to train on, 397 to test with.

    Args:
        train_images: how many of the 1,400.
        crops: of each training image: batches become the dicts that OBoW reads; 0: pairs.
        batch_size: images a step.
    """

    num_classes = 10  # the command line hands these two on to the model
    image_size = 16

    def __init__(self, train_images: int = 1400, crops: int = 0, batch_size: int = 50) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.crops, self.batch_size = crops, batch_size
        digits = load_digits()
        grey = torch.tensor(digits.images).float()[:, None] / 16
        images = F.interpolate(grey, size=(16, 16), mode="bilinear").repeat(1, 3, 1, 1)
        pairs = TensorDataset(images, torch.tensor(digits.target))
        self.train, self.test = Subset(pairs, range(train_images)), Subset(pairs, range(1400, 1797))

    def train_dataloader(self) -> DataLoader:
        """Shuffled; whole batches."""
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True, drop_last=True)

    def train_eval_dataloader(self) -> DataLoader:
        """The same images in order: MCMI takes its centroids from them, k-NN its neighbours."""
        return DataLoader(self.train, batch_size=200)

    def test_dataloader(self) -> DataLoader:
        """The others."""
        return DataLoader(self.test, batch_size=200)

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> object:
        """Make the crops of a whole batch, on its device."""
        if not (self.crops and self.trainer.training):
            return batch
        image, label = batch
        return {"image": image, "label": label, "crops": [random_crops(image, self.crops)]}


def random_crops(image: Tensor, number: int, side: int = 12, smallest: float = 0.6) -> Tensor:
    """So many crops of each image, one behind the other: of ``smallest`` to 1 of its side, scaled to side x side."""
    repeated = image.repeat_interleave(number, dim=0)
    scale = torch.empty(len(repeated), 1, 1, device=image.device).uniform_(smallest, 1)
    centre = (1 - scale) * torch.empty(len(repeated), 2, 1, device=image.device).uniform_(-1, 1)
    boxes = torch.cat([scale * torch.eye(2, device=image.device), centre], dim=2)
    grid = F.affine_grid(boxes, [len(repeated), image.shape[1], side, side], align_corners=False)
    return F.grid_sample(repeated, grid, padding_mode="border", align_corners=False)
