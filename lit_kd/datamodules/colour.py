"""Colour changes of a whole batch, each image with its own strengths and order, on pixels in [0, 1].

The operations and their order are torchvision's ColorJitter; `strength` below is (M,), one a sample.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_ORDERS = list(permutations(range(4)))
_HUE_AT = [order.index(HUE) for order in _ORDERS]
_BLENDS = [[kind for kind in order if kind != HUE] for order in _ORDERS]


def grayscale(image: Tensor) -> Tensor:
    """0.2989 R + 0.587 G + 0.114 B of images (M, 3, H, W): (M, 1, H, W)."""
    red, green, blue = image.split(1, dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blend(image: Tensor, kind: Tensor, strength: Tensor) -> Tensor:
    """clamp(f * x + (1 - f) * y): y is 0 (brightness), the mean grey (contrast) or the grey of x (saturation).

    Args:
        image: (M, 3, H, W).
        kind: BRIGHTNESS, CONTRAST or SATURATION of each sample, int64 (M,).
        strength: f, not negative; at f = 1 an image stays as it is, to the bit.
    """
    rest = 1 - strength
    grey = grayscale(image)
    mean = grey.mean((2, 3), keepdim=True).mul_(_column(torch.where(kind == CONTRAST, rest, 0)))
    other = grey.mul_(_column(torch.where(kind == SATURATION, rest, 0))).add_(mean)
    return torch.addcmul(other, image, _column(strength)).clamp_(0, 1)


def shift_hue(image: Tensor, strength: Tensor) -> Tensor:
    """Turn the hue of images (M, 3, H, W) by `strength`, in turns within [-0.5, 0.5].

    With value v = max(R, G, B), chroma c = v - min(R, G, B) and hue h in sixths of a turn, a channel of the result is
    v - c * max(0, 2 - d), at most c of it taken, where d is the distance on the circle between h plus the channel's
    5, 3 or 1 and 2: HSV's inverse without its six cases.
    """
    red, green, blue = image.split(1, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    sector = torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sector = torch.where(value == red, green - blue, sector).div_(chroma.clamp(min=1e-12))  # h, in [-1, 5]
    turned = sector.add_(_column(6 * strength) - 2)
    turned = turned.sub_(turned.div(6).round_().mul_(6))  # h - 2 on the circle, in [-3, 3]
    taken = turned + turned.new_tensor([-1.0, 3.0, 1.0]).view(1, 3, 1, 1)  # 5 is -1 on the circle; in [-4, 6]
    taken = taken.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)  # |3 - |y|| - 1 = 2 - d
    return torch.addcmul(value, chroma, taken, value=-1)


def jitter(image: Tensor, applied: Tensor, order: Tensor, strengths: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in the order of each sample.

    Hue costs as much as the others together. So all samples go through the others, three steps with the kind of each
    sample's own order, and before each step those whose turn it is go through the hue.

    Args:
        image: (M, 3, H, W), overwritten.
        applied: Which samples are changed at all, bool (M,).
        order: Which of the 24 orders, int64 (M,).
        strengths: Factors of brightness, contrast and saturation, and the turn of the hue, (M, 4).
    """
    hue_at = torch.tensor(_HUE_AT, device=image.device)[order]  # (M,)
    blends = torch.tensor(_BLENDS, device=image.device)[order]  # (M, 3)
    neutral = strengths.new_tensor([1.0, 1.0, 1.0, 0.0])
    strengths = torch.where(applied[:, None], strengths, neutral)
    turns = applied & (strengths[:, HUE] != 0)
    for step in range(4):
        (now,) = (turns & (hue_at == step)).nonzero(as_tuple=True)
        if len(now):
            image[now] = shift_hue(image[now], strengths[now, HUE])
        if step < 3:
            kind = blends[:, step]
            image = blend(image, kind, strengths.gather(1, kind[:, None])[:, 0])
    return image


def _column(value: Tensor) -> Tensor:
    return value[:, None, None, None]
