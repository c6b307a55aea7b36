"""Batched colour changes against torchvision, image by image."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from lit_kd.datamodules.colour import BRIGHTNESS, CONTRAST, SATURATION, blend, grayscale, jitter, shift_hue

OPERATIONS = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]


def images() -> Tensor:
    """48 images: random ones, and grey, black, white ones and ones whose channels tie."""
    image = torch.rand(48, 3, 13, 11, generator=torch.Generator().manual_seed(0))
    image[0], image[1], image[2] = 0.5, 0.0, 1.0
    image[3, 0] = image[3, 1]
    image[4, 1] = image[4, 2]
    image[5:16] = (image[5:16] * 3).round() / 3
    return image


def strengths() -> Tensor:
    """Factors of (48, 3) in [0, 2] and turns in [-0.5, 0.5]."""
    draw = torch.rand(48, 4, generator=torch.Generator().manual_seed(1))
    return draw * torch.tensor([2.0, 2.0, 2.0, 1.0]) - torch.tensor([0.0, 0.0, 0.0, 0.5])


@pytest.mark.parametrize("kind", [BRIGHTNESS, CONTRAST, SATURATION])
def test_blends(kind: int) -> None:
    image, factors = images(), strengths()[:, kind]
    expected = [OPERATIONS[kind](x, f) for x, f in zip(image, factors.tolist(), strict=True)]
    result = blend(image, torch.full((48,), kind), factors)
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=1e-6)
    assert torch.equal(blend(image, torch.full((48,), kind), torch.ones(48)), image)


def test_hue() -> None:
    image, turns = images(), strengths()[:, 3]
    turns[20:24] = torch.tensor([-0.5, 0.5, 0.0, 1 / 3])
    result = shift_hue(image, turns)
    expected = [TF.adjust_hue(x, t) for x, t in zip(image, turns.tolist(), strict=True)]
    torch.testing.assert_close(result, torch.stack(expected), rtol=0, atol=3e-6)
    assert result.min() >= 0 and result.max() <= 1
    torch.testing.assert_close(shift_hue(image, torch.full((48,), 1 / 3)), image.roll(1, dims=1), rtol=0, atol=1e-6)


def test_grayscale() -> None:
    expected = torch.stack([TF.rgb_to_grayscale(x) for x in images()])
    torch.testing.assert_close(grayscale(images()), expected, rtol=0, atol=1e-6)


def test_jitter_in_every_order() -> None:
    """Two images for each of the 24 orders, and what is not to be changed stays as it is, to the bit."""
    image, values = images(), strengths() * 0.5 + torch.tensor([0.5, 0.5, 0.5, 0.0])
    order, applied = torch.arange(48) // 2, torch.ones(48, dtype=torch.bool)
    applied[30:35] = False
    result = jitter(image.clone(), applied, order, values)
    for number, (x, strength) in enumerate(zip(image, values.tolist(), strict=True)):
        if not applied[number]:
            assert torch.equal(result[number], x)
            continue
        for operation in list(permutations(range(4)))[number // 2]:
            x = OPERATIONS[operation](x, strength[operation])
        torch.testing.assert_close(result[number], x, rtol=0, atol=1e-5)
    assert result.min() >= 0 and result.max() <= 1
