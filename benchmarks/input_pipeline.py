"""Training images a second: the in-memory pipeline of lit_kd beside torchvision's CIFAR10 and two loader workers.

    python -m benchmarks.input_pipeline [--root data/cifar10]

Both deliver the same pixels as shuffled, padded-and-cropped, flipped, normalised float32 batches to the main process.
Without --root they are random; speed is the same. Runs alternate; the table holds the median and the range.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision import transforms as T

from lit_kd.datamodules import CIFAR10DataModule
from lit_kd.datamodules.loading import Batch, ImageSet, InMemoryImages

IMAGES = 25_600  # a multiple of both batch sizes


class RandomCIFAR10(CIFAR10DataModule):
    """Random pixels in the place of files."""

    def load(self, split: str) -> InMemoryImages:
        """Draw 50,000 images."""
        pixels = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8)
        return InMemoryImages(pixels, torch.arange(50_000) % 10, [str(i) for i in range(10)])


class TorchvisionCIFAR10(datasets.CIFAR10):
    """torchvision's dataset around pixels that are already read: its own __getitem__ is what is measured."""

    def __init__(self, images: ImageSet, transform: Callable) -> None:
        """Keep the first IMAGES as torchvision does, (N, 32, 32, 3) in numpy."""
        datasets.VisionDataset.__init__(self, "", transform=transform)
        batch = images[{"index": torch.arange(IMAGES)}]
        self.data = batch["image"].permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = batch["label"].tolist()


def ours(data: CIFAR10DataModule, batch_size: int) -> Callable[[], float]:
    """A function that runs one epoch of IMAGES and returns images a second."""
    data.batch_size, data.samples_per_epoch = batch_size, IMAGES
    loader = data.train_dataloader()
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    scale, shift = 1 / std, -mean / std

    def run() -> float:
        start = time.perf_counter()
        for batch in loader:
            batch = data.on_after_batch_transfer(batch, 0)
            batch["image"].mul_(scale).add_(shift)  # the first layer of a network here, a transform there
        return IMAGES / (time.perf_counter() - start)

    return run


def torchvision_workers(data: CIFAR10DataModule, batch_size: int) -> Callable[[], float]:
    """The same for a DataLoader of two persistent workers over PIL transforms."""
    transform = T.Compose(
        [
            T.RandomCrop(32, padding=4),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(data.mean, data.std),
        ]
    )
    dataset = TorchvisionCIFAR10(data.sets["train"], transform)
    loader: DataLoader[Batch] = DataLoader(dataset, batch_size, shuffle=True, num_workers=2, persistent_workers=True)

    def run() -> float:
        start = time.perf_counter()
        for _ in loader:
            pass
        return IMAGES / (time.perf_counter() - start)

    return run


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="CIFAR-10 as CIFAR10DataModule reads it; random pixels if absent")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = CIFAR10DataModule(root=arguments.root) if arguments.root else RandomCIFAR10()
    data.setup("fit")
    print(f"{'batch':>5}  {'lit_kd, 1 thread':>28}  {'torchvision, 2 workers':>28}  ratio")
    for batch_size in (64, 256):
        pipelines = [ours(data, batch_size), torchvision_workers(data, batch_size)]
        for run in pipelines:
            run()  # starts the workers, fills the caches
        rates = [[run() for run in pipelines] for _ in range(arguments.runs)]
        columns = [sorted(column) for column in zip(*rates, strict=True)]
        cells = [f"{median(c):,.0f} ({c[0]:,.0f}-{c[-1]:,.0f})" for c in columns]
        ratio = median(columns[0]) / median(columns[1])
        print(f"{batch_size:>5}  {cells[0]:>28}  {cells[1]:>28}  {ratio:.1f}")


if __name__ == "__main__":
    main()
