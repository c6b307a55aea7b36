"""Training images a second: the in-memory pipeline of lit_kd beside torchvision's CIFAR10 and two loader workers.

    python -m benchmarks.input_pipeline [--root data/cifar10]

Both deliver the same pixels as shuffled, padded-and-cropped, flipped, normalised float32 batches to the main process.
Without --root they are random; speed is the same. Runs alternate; the table holds the median and the range.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision import transforms as T

from benchmarks.random_images import RandomImages
from benchmarks.timing import alternate, spread, timed
from lit_kd.datamodules import CIFAR10DataModule, ImageDataModule
from lit_kd.datamodules.loading import Batch, ImageSet

IMAGES = 25_600  # a multiple of both batch sizes


class TorchvisionCIFAR10(datasets.CIFAR10):  # type: ignore[misc]  # torchvision has no types
    """torchvision's dataset around pixels that are already read: its own __getitem__ is what is measured."""

    def __init__(self, images: ImageSet, transform: Callable[[Any], Any]) -> None:
        """Keep the first IMAGES as torchvision does, (N, 32, 32, 3) in numpy."""
        datasets.VisionDataset.__init__(self, "", transform=transform)
        batch = images[{"index": torch.arange(IMAGES)}]
        self.data = batch["image"].permute(0, 2, 3, 1).contiguous().numpy()
        self.targets = batch["label"].tolist()


def ours(data: ImageDataModule, batch_size: int) -> Callable[[], None]:
    """A function that runs one epoch of IMAGES."""
    data.batch_size, data.samples_per_epoch = batch_size, IMAGES
    loader = data.train_dataloader()
    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    scale, shift = 1 / std, -mean / std

    def run() -> None:
        for batch in loader:
            batch = data.on_after_batch_transfer(batch, 0)
            batch["image"].mul_(scale).add_(shift)  # the first layer of a network here, a transform there

    return run


def torchvision_workers(data: ImageDataModule, batch_size: int) -> Callable[[], None]:
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
    return partial(exhaust, loader)


def exhaust(loader: Iterable[Any]) -> None:
    """Go through a loader once."""
    for _ in loader:
        pass


def rates(pipelines: Mapping[str, Callable[[], None]], images: int, runs: int) -> str:
    """Images a second of two pipelines, each median and range of alternating runs, and their ratio."""
    for run in pipelines.values():
        run()  # starts the workers, fills the caches
    found = list(alternate({name: partial(timed, run) for name, run in pipelines.items()}, runs))
    columns = [spread(images / float(one[name][0]) for one in found) for name in pipelines]
    cells = ["{:,.0f} ({:,.0f}-{:,.0f})".format(*column) for column in columns]
    return f"{cells[0]:>28}  {cells[1]:>28}  {columns[0].median / columns[1].median:.1f}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="CIFAR-10 as CIFAR10DataModule reads it; random pixels if absent")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data: ImageDataModule = CIFAR10DataModule(root=arguments.root) if arguments.root else RandomImages()
    data.setup("fit")
    print(f"{'batch':>5}  {'lit_kd, 1 thread':>28}  {'torchvision, 2 workers':>28}  ratio")
    for batch_size in (64, 256):
        pipelines = {"lit_kd": ours(data, batch_size), "torchvision": torchvision_workers(data, batch_size)}
        print(f"{batch_size:>5}  {rates(pipelines, IMAGES, arguments.runs)}")


if __name__ == "__main__":
    main()
