"""Fixture L of the defensive specification: linear networks, for which minimal perturbations have a closed form."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """z = scale * (W x + b) + shift over images (B, 3, 8, 8)."""

    def __init__(self, classes: int = 10, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(classes, 192, generator=generator))
        self.bias = nn.Parameter(-0.5 * self.weight.detach().sum(1))  # logits are small around mid grey
        self.scale, self.shift = scale, shift

    def forward(self, image: Tensor) -> Tensor:
        return self.scale * (image.flatten(1) @ self.weight.T.to(image) + self.bias.to(image)) + self.shift


def grey(count: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images in [.45, .55], so that no clipping is active."""
    return 0.45 + 0.1 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def minimal_distance(network: Linear, image: Tensor, label: Tensor, order: float) -> Tensor:
    """(B,) smallest perturbation that changes the class: min_j (z_y - z_j) / ||w_y - w_j||_dual; order 1 for Linf."""
    logits = network(image).detach().double()
    weight = network.scale * network.weight.detach().double()
    gap = logits.gather(1, label[:, None]) - logits
    norm = (weight[label][:, None] - weight[None]).norm(p=order, dim=2)
    return (gap / norm).scatter(1, label[:, None], torch.inf).amin(1)
