"""Batched crops, resizing and blur against torchvision, image by image."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from lit_kd.datamodules.augment import counter_uniform
from lit_kd.datamodules.resampling import blur_taps, filter_images, resize_taps, resized_boxes, taps_needed

SCALE, RATIO = (0.08, 0.6), (3 / 4, 4 / 3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes(n: int, height: int, width: int, scale: tuple[float, float] = SCALE, seed: int = 0) -> Tensor:
    """Top, left, height, width of n boxes, (n, 4)."""
    uniforms = counter_uniform(seed, torch.zeros(n, dtype=torch.int64), torch.arange(n), 22)
    sizes = torch.tensor([height, width]).expand(n, 2).unbind(1)
    return torch.stack(resized_boxes(uniforms, *sizes, scale, RATIO), dim=1)


def crop(image: Tensor, source: Tensor, box: Tensor, output: int, flip: Tensor) -> Tensor:
    top, left, tall, wide = box.float().unbind(1)
    zero, ends = torch.zeros_like(top), torch.full_like(top, output)
    vertical = resize_taps(top, tall, ends, zero, output, taps_needed(image.shape[2], output))
    horizontal = resize_taps(left, wide, ends, zero, output, taps_needed(image.shape[3], output), flip)
    return filter_images(image, source, vertical, horizontal)


@pytest.mark.parametrize(("size", "output"), [(256, 160), (32, 24), (300, 96), (40, 64), (33, 33)])
def test_crops_equal_torchvision(size: int, output: int) -> None:
    """Any box, from one pixel to the whole image, shrunk and enlarged; three crops of each image."""
    image = torch.rand(10, 3, size, size - 5, generator=generator())
    source = torch.arange(10).repeat_interleave(3)
    draw = torch.rand(30, 5, generator=generator(1))
    tall, wide = (draw[:, 0] * size).floor() + 1, (draw[:, 1] * (size - 5)).floor() + 1
    tall[:3], wide[:3] = size, size - 5
    top, left = (draw[:, 2] * (size - tall + 1)).floor(), (draw[:, 3] * (size - 5 - wide + 1)).floor()
    box, flip = torch.stack([top, left, tall, wide], 1), draw[:, 4] < 0.5
    expected = [
        TF.resized_crop(image[i], *map(int, b), [output, output], antialias=True)
        for i, b in zip(source.tolist(), box.tolist(), strict=True)
    ]
    expected = [e.flip(-1) if f else e for e, f in zip(expected, flip, strict=True)]
    torch.testing.assert_close(crop(image, source, box, output, flip), torch.stack(expected), rtol=0, atol=1e-6)


def test_the_whole_image_at_its_size_stays_as_it_is() -> None:
    image = torch.rand(3, 3, 12, 12, generator=generator())
    box, flip = torch.tensor([[0, 0, 12, 12]]).expand(3, 4), torch.tensor([False, True, False])
    result = crop(image, torch.arange(3), box, 12, flip)
    assert torch.equal(result, torch.stack([image[0], image[1].flip(-1), image[2]]))


def test_blur_equals_torchvision() -> None:
    image = torch.rand(8, 3, 21, 30, generator=generator())
    source = torch.tensor([5, 0, 0, 7])
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0])
    result = filter_images(image, source, blur_taps(sigma, 21, 8), blur_taps(sigma, 30, 8))
    expected = [
        TF.gaussian_blur(image[i], [17, 17], [s, s]) for i, s in zip(source.tolist(), sigma.tolist(), strict=True)
    ]
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=2e-6)


def test_blur_wider_than_the_image() -> None:
    """The largest radius that reflects: 4 pixels have 3 neighbours."""
    image = torch.rand(1, 3, 4, 4, generator=generator())
    sigma = torch.tensor([2.0])
    result = filter_images(image, torch.tensor([0]), blur_taps(sigma, 4, 3), blur_taps(sigma, 4, 3))
    torch.testing.assert_close(result[0], TF.gaussian_blur(image[0], [7, 7], [2.0, 2.0]), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (32, 32), (375, 500), (60, 200)])
@pytest.mark.parametrize("scale", [SCALE, (0.6, 1.0)])
def test_boxes_are_distributed_as_torchvision_draws_them(height: int, width: int, scale: tuple[float, float]) -> None:
    """Area, aspect and place; at 60 x 200 and area 0.6-1 many draws end at the centred box."""
    torch.manual_seed(0)
    image, transform = torch.empty(3, height, width), v2.RandomResizedCrop(8, scale=scale)
    draws = [transform.make_params([image]) for _ in range(2000)]
    theirs = torch.tensor([[d[k] for k in ("top", "left", "height", "width")] for d in draws]).double()
    ours = boxes(8000, height, width, scale).double()
    assert torch.equal(ours, ours.round())
    top, left, tall, wide = ours.unbind(1)
    assert top.min() >= 0 and left.min() >= 0 and tall.min() >= 1 and wide.min() >= 1
    assert (top + tall).max() <= height and (left + wide).max() <= width

    def features(box: Tensor) -> list[Tensor]:
        top, left, tall, wide = box.unbind(1)
        return [tall * wide, wide / tall, tall, wide, top, left]

    p = [ks_2samp(a.numpy(), b.numpy()).pvalue for a, b in zip(features(ours), features(theirs), strict=True)]
    assert min(p) > 1e-3, p


def test_areas_and_aspects_are_uniform() -> None:
    """Where every attempt fits: area U(0.08, 0.5), log aspect U(log 3/4, log 4/3)."""
    _, _, tall, wide = boxes(8000, 1000, 1000, (0.08, 0.5)).double().unbind(1)
    area, aspect = (tall * wide / 1e6 - 0.08) / 0.42, (wide / tall).log() / torch.tensor(4 / 3).double().log()
    assert kstest(area.numpy(), "uniform").pvalue > 1e-3
    assert kstest((aspect / 2 + 0.5).numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "box"), [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10)), (1, 1, (0, 0, 1, 1))]
)
def test_the_box_where_none_fits(height: int, width: int, box: tuple[int, ...]) -> None:
    """As torchvision: the largest centred one whose aspect is allowed."""
    theirs = v2.RandomResizedCrop(8, scale=(0.9, 1.0)).make_params([torch.empty(3, height, width)])
    assert tuple(theirs[k] for k in ("top", "left", "height", "width")) == box
    assert torch.equal(boxes(50, height, width, (0.9, 1.0)), torch.tensor(box).float().expand(50, 4))


def test_largest_uniform_stays_inside() -> None:
    uniforms = torch.full((500, 22), 1 - 2.0**-24)
    height, width = torch.arange(500) + 1, torch.arange(500).flip(0) + 1
    top, left, tall, wide = resized_boxes(uniforms, height, width, (0.08, 0.6), RATIO)
    assert (top + tall <= height).all() and (left + wide <= width).all()
