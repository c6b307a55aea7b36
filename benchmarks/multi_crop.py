"""Multi-crop views of OBoW, images a second: whole batches in lit_kd, and torchvision v2 image by image in two workers.

    python -m benchmarks.multi_crop [--size 32 256] [--pil]

Both deliver the teacher's view, two crops and five of nine patches of each image as float32 batches in [0, 1] to the
main process: of 32-pixel images with the views of `MultiCropViews.cifar()`, of others with those of the official code.
torchvision works on uint8 tensors, or with --pil on PIL images as the official code; lit_kd uses one thread of the
main process and no worker. The pixels are random, the sizes of crops and the colours are drawn alike. Runs alternate;
the table holds the median and the range.
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.input_pipeline import exhaust, rates
from benchmarks.random_images import RandomImages
from lit_kd.datamodules import MultiCropViews


class TorchvisionViews(Dataset[list[Tensor]]):
    """The views of one image at a time."""

    def __init__(self, images: Tensor, views: MultiCropViews, pil: bool) -> None:
        """Keep images, uint8 (N, 3, H, W), and build the transforms of the official code."""
        self.images, self.views, self.pil = images, views, pil
        radius = min(math.ceil(4 * views.blur_sigma[1]), views.crop_size - 1)
        flip = v2.RandomHorizontalFlip(views.flip_probability)
        last = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
        colours = [
            v2.RandomApply([v2.ColorJitter(*views.color_jitter)], views.jitter_probability),
            v2.RandomGrayscale(views.gray_probability),
        ]
        blur = v2.RandomApply([v2.GaussianBlur(2 * radius + 1, views.blur_sigma)], views.blur_probability)
        self.teacher = v2.Compose([v2.Resize(views.teacher_resize), v2.CenterCrop(views.teacher_size), flip, last])
        crop = v2.RandomResizedCrop(views.crop_size, views.crop_scale, views.ratio)
        self.crop = v2.Compose([crop, *colours, *([blur] if views.blur_probability else []), flip, last])
        whole = v2.RandomResizedCrop(views.patch_image_size, views.patch_scale, views.ratio)
        self.patch_image = v2.Compose([whole, *colours, flip, last])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        """The teacher's view, the crops and the patches."""
        views, image = self.views, self.images[index]
        if self.pil:
            image = v2.functional.to_pil_image(image)
        crops = torch.stack([self.crop(image) for _ in range(views.num_crops)])
        whole, side = self.patch_image(image), views.patch_size
        step = (views.patch_image_size - side - views.max_offset) // 2
        patches = []
        for cell in torch.randperm(9)[: views.num_patches].tolist():
            top, left = (place * step + int(torch.randint(views.max_offset + 1, ())) for place in divmod(cell, 3))
            patches.append(whole[:, top : top + side, left : left + side])
        return [self.teacher(image), crops, torch.stack(patches)]


def ours(data: RandomImages) -> None:
    """One epoch of whole batches."""
    for batch in data.train_dataloader():
        data.on_after_batch_transfer(batch, 0)


def torchvision_workers(data: RandomImages, views: MultiCropViews, pil: bool) -> DataLoader[list[Tensor]]:
    """A loader of two persistent workers."""
    dataset = TorchvisionViews(data.sets["train"].pixels, views, pil)  # type: ignore[attr-defined]
    return DataLoader(dataset, data.batch_size, shuffle=True, num_workers=2, persistent_workers=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[32, 256], help="height and width of the images")
    parser.add_argument("--samples", type=int, help="images of a run; default: 6,400 of 32 pixels, 256 of others")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5, help="alternating runs of each")
    parser.add_argument("--pil", action="store_true", help="torchvision on PIL images instead of uint8 tensors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kind = "PIL" if arguments.pil else "uint8 tensors"
    print(f"torch {torch.__version__}, batch {arguments.batch_size}, torchvision on {kind}")
    print(f"{'pixels':>6}  {'lit_kd, 1 thread':>28}  {'torchvision, 2 workers':>28}  ratio")
    for size in arguments.size:
        small = size == 32
        views = MultiCropViews.cifar() if small else MultiCropViews()
        samples = arguments.samples or (6400 if small else 256)
        data = RandomImages(pixels=size, samples=samples, batch_size=arguments.batch_size, views=views)
        data.setup("fit")
        workers = torchvision_workers(data, views, arguments.pil)
        pipelines = {"lit_kd": partial(ours, data), "torchvision": partial(exhaust, workers)}
        print(f"{size:>6}  {rates(pipelines, samples, arguments.runs)}")


if __name__ == "__main__":
    main()
