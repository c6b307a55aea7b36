"""Bags of visual words (OBoW, Gidaris et al., arXiv:2012.11552; official code: valeoai/obow).

A map of features is described by how much of each word of a vocabulary it holds; that is the target of a prediction
from other views of the image. Every location u has the squared distances d[k, u] = |x_u - v_k|^2 to the words v_k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from lit_kd.checks import check_choice, check_positive, check_whole
from lit_kd.losses.shared import Reduction, full_precision, reduce

Pool = Literal["max", "avg"]

MAX_ELEMENTS = 2**27  # distances held at once: 512 MiB
_BLOCK = {"cpu": 2**19}  # elements that the passes after the matrix product take at a time: they stay in the cache
_BLOCK_ELSEWHERE = 2**24


@full_precision
def bow_codes(
    features: Tensor, words: Tensor, inverse_delta: float | None, mean_distance: float | Tensor, hard: bool = False
) -> Tensor:
    r"""How each location is shared out among the words.

    .. math:: q_{k,u} = softmax_k\!\left(-\frac{\delta^{-1}}{\mu} |x_u - v_k|^2\right)

    Distances are clamped at 0. The result is as large as the batch has locations times words; :class:`WordDistances`
    gives the pooled target without it.

    Args:
        features: x, maps (B, C, H, W), the border already cropped.
        words: v, (K, C).
        inverse_delta: sharpness, 15 for ResNet-50 and 10 for ResNet-18 in the official recipes; no unit.
        mean_distance: mu, the running mean of the distance to the nearest word, in squared feature units.
        hard: all of a location to its nearest word; the two scales are ignored.

    Returns:
        (B, K, H, W), sums to 1 over the words.

    Raises:
        ValueError: features and words with different numbers of channels, or a scale that is not positive.

    Example:
        >>> words = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> bow_codes(torch.full((1, 2, 1, 1), 0.5), words, inverse_delta=1.0, mean_distance=0.5).flatten()
        tensor([0.5000, 0.5000])
    """
    _check_channels(features, words)
    if not hard:
        check_positive(inverse_delta=inverse_delta)
        check_positive(mean_distance=mean_distance)
    rows = features.flatten(2).transpose(1, 2)  # (B, HW, C)
    codes = rows.new_empty(*rows.shape[:2], len(words))
    for images, places in _pieces(codes.shape, _BLOCK_ELSEWHERE):
        distances = _distances(rows[images, places], words)
        if hard:
            codes[images, places] = 0
            codes[images, places].scatter_(2, distances.argmin(2, keepdim=True), 1)
        else:
            codes[images, places] = (distances * (-inverse_delta / mean_distance)).softmax(2)  # type: ignore[operator]
    return codes.transpose(1, 2).unflatten(2, features.shape[2:])


@full_precision
def bow_target(codes: Tensor, pool: Pool = "max") -> Tensor:
    r"""The bag of words of each image: codes pooled over the locations and normalised.

    .. math:: \tilde y_k = \max_u q_{k,u} \;\text{or}\; mean_u \, q_{k,u}, \quad y = \tilde y / |\tilde y|_1

    Args:
        codes: q, (B, K, H, W), not negative.
        pool: "max" (a word counts once however often it occurs) or "avg".

    Returns:
        (B, K), rows sum to 1.

    Raises:
        ValueError: an unknown pool.

    Example:
        >>> codes = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])
        >>> bow_target(codes), bow_target(codes, pool="avg")
        (tensor([[0.5000, 0.5000]]), tensor([[0.6667, 0.3333]]))
    """
    check_choice(("max", "avg"), pool=pool)
    return _normalized(codes.amax((2, 3)) if pool == "max" else codes.mean((2, 3)))


@full_precision
def bow_loss(logits: Tensor, target: Tensor, crops_per_image: int, *, reduction: Reduction = "mean") -> Tensor:
    r"""Divergence of the predicted from the target bags of words, in nats.

    .. math:: mean_{b,j} \, KL(y_b \| softmax(z_{b,j})) = CE - H(y)

    Args:
        logits: z, (B * crops_per_image, K), image-major: row b * crops_per_image + j is crop j of image b.
        target: y, (B, K), rows sum to 1; held for all crops of its image.
        crops_per_image: n.
        reduction: "mean" over the rows of logits, or "none" for (B * crops_per_image,).

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> bow_loss(torch.zeros(2, 4), torch.tensor([[0.5, 0.5, 0.0, 0.0]]), crops_per_image=2)
        tensor(0.6931)
    """
    check_whole(crops_per_image=crops_per_image)
    if logits.shape != (len(target) * crops_per_image, target.shape[1]):
        raise ValueError(
            f"logits {tuple(logits.shape)} do not fit target {tuple(target.shape)} with "
            f"crops_per_image={crops_per_image}: they must be {(len(target) * crops_per_image, target.shape[1])}."
        )
    log_p = logits.log_softmax(1).unflatten(0, (-1, crops_per_image))  # (B, n, K)
    cross_entropy = -torch.einsum("bk,bnk->bn", target, log_p)
    negative_entropy = torch.special.xlogy(target, target).sum(1, keepdim=True)
    return reduce((negative_entropy + cross_entropy).flatten(), reduction)


@full_precision
def bow_perplexity(distribution: Tensor) -> Tensor:
    r"""Effective number of words, ``exp(H)``, exact: 0 log 0 = 0 and nothing is added inside the logarithm.

    Of the rows of a target it is the words in one image, of their mean the words that the batch uses.

    Args:
        distribution: (..., K), sums to 1 over the words.

    Returns:
        (...), between 1 and K.

    Example:
        >>> target = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
        >>> bow_perplexity(target), bow_perplexity(target.mean(0))
        (tensor([2., 2.]), tensor(4.))
    """
    return (-torch.special.xlogy(distribution, distribution).sum(-1)).exp()


class WordDistances:
    """Distances of all locations of a batch to all words, and the bag of words that follows from them.

    ``bow_target(bow_codes(...))`` without the codes, in two steps, because mu holds the batch's own distances: first
    the distances to the nearest words, then, with mu, the target. One matrix product is all it needs if the
    B * H * W * K distances are at most ``max_elements``. Otherwise they are taken twice, in pieces of that size, and
    no tensor is larger. Without gradients.

    Args:
        features: maps (B, C, H, W), the border already cropped.
        words: (K, C).
        max_elements: distances held at once, or K where that is more; 4 bytes each.

    Attributes:
        nearest: distance of each location to its nearest word, (B, H * W), not negative.

    Raises:
        ValueError: features and words with different numbers of channels.

    Example:
        >>> distances = WordDistances(torch.full((1, 2, 1, 1), 0.5), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        >>> distances.nearest, distances.target(inverse_delta=15.0, mean_distance=distances.nearest.mean())
        (tensor([[0.5000]]), tensor([[0.5000, 0.5000]]))
    """

    @torch.no_grad()
    @full_precision
    def __init__(self, features: Tensor, words: Tensor, max_elements: int = MAX_ELEMENTS) -> None:
        _check_channels(features, words)
        check_whole(max_elements=max_elements)
        self._rows = features.flatten(2).transpose(1, 2).contiguous()  # (B, HW, C)
        self._words = words
        self._max_elements = max_elements
        self._shape = (*self._rows.shape[:2], len(words))
        self._all: Tensor | None = None
        self.nearest = self._rows.new_empty(self._shape[:2])
        for images, places, distances in self._pieces():
            self.nearest[images, places] = distances.amin(2) + _squared_norms(self._rows[images, places])
            if distances.shape == self._shape:
                self._all = distances

    @torch.no_grad()
    def target(self, inverse_delta: float | None, mean_distance: float | Tensor, pool: Pool = "max") -> Tensor:
        """The bag of words of each image, (B, K), rows sum to 1; ``inverse_delta`` None assigns hard."""
        check_choice(("max", "avg"), pool=pool)
        if inverse_delta is not None:
            check_positive(inverse_delta=inverse_delta)
        bags = self._rows.new_zeros(len(self._rows), len(self._words))
        block = _BLOCK.get(bags.device.type, _BLOCK_ELSEWHERE)
        for images, _, distances in self._pieces():
            if inverse_delta is None:
                index = distances.argmin(2)
                ones = torch.ones((), dtype=bags.dtype, device=bags.device).expand_as(index)
                bags[images].scatter_(1, index, 1) if pool == "max" else bags[images].scatter_add_(1, index, ones)
                continue
            scale = -inverse_delta / mean_distance
            for some, part in _pieces(distances.shape, block):
                codes = (distances[some, part] * scale).softmax(2)
                bag = bags[images][some]
                torch.maximum(bag, codes.amax(1), out=bag) if pool == "max" else bag.add_(codes.sum(1))
        return _normalized(bags)

    def _pieces(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Distances, each row less a constant of its own: the same constant for all words leaves the codes alone."""
        if self._all is not None:
            yield slice(None), slice(None), self._all
            return
        for images, places in _pieces(self._shape, self._max_elements):
            yield images, places, _distances(self._rows[images, places], self._words)


def _check_channels(features: Tensor, words: Tensor) -> None:
    if features.shape[1] != words.shape[1]:
        raise ValueError(f"features have {features.shape[1]} channels, but words {words.shape[1]}.")


def _distances(rows: Tensor, words: Tensor) -> Tensor:
    """|x - v|^2 - |x|^2 for rows (n, m, C) and words (K, C), not below -|x|^2: (n, m, K)."""
    flat = rows.flatten(0, 1)
    # The constant |x|^2 of a row would be one more pass over the largest tensor, and no code depends on it.
    shifted = torch.addmm(_squared_norms(words), flat, words.T, alpha=-2)
    return shifted.clamp_(min=-_squared_norms(flat)[:, None]).unflatten(0, rows.shape[:2])


def _squared_norms(vectors: Tensor) -> Tensor:
    """|v|^2 along the last dimension: for (8192, 2048) 2 ms on a core, ``square().sum()`` with its copy 31 ms."""
    return torch.linalg.vector_norm(vectors, dim=-1).square()


def _pieces(shape: Sequence[int], limit: int) -> Iterator[tuple[slice, slice]]:
    """Cut (B, U, K) into several images, or into parts of one image, of at most `limit` elements or one row."""
    batch, places, words = shape
    images, part = max(1, limit // (places * words)), min(places, max(1, limit // words))
    for b in range(0, batch, images):
        for u in range(0, places, part):
            yield slice(b, b + images), slice(u, u + part)


def _normalized(bags: Tensor) -> Tensor:
    return bags / bags.sum(1, keepdim=True).clamp(min=1e-12)
