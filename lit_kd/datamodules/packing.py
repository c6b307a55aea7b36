"""Several texts in a row of tokens: bins of a capacity, and which texts share one in which pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_kd.datamodules.augment import counter_bits


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of positions in ``lengths``, which fall: each length goes into the first bin that has room for it.

    A tree of the most room below each node finds the bin, in O(n log n) for all.

    Raises:
        ValueError: a length is above the capacity.

    Example:
        >>> first_fit_decreasing([6, 5, 4, 3, 1], 10)
        [[0, 2], [1, 3, 4]]
    """
    if lengths and lengths[0] > capacity:
        raise ValueError(f"A text of {lengths[0]} tokens does not fit into a row of {capacity}.")
    size = 1 << max(len(lengths) - 1, 0).bit_length()
    room = [capacity] * (2 * size)  # of node i's children 2 i and 2 i + 1 the larger; bins are the leaves
    bins: list[list[int]] = [[] for _ in lengths]
    for position, length in enumerate(lengths):
        node = 1
        while node < size:
            node = 2 * node + (room[2 * node] < length)
        bins[node - size].append(position)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [one for one in bins if one]


class Bins:
    """Bins of texts, drawn anew in each pass.

    First-fit-decreasing looks at lengths alone, so the bins of all passes have the same lengths in them and are equally
    many; which of the texts of one length goes where is a function of (seed, pass).

    Args:
        index: positions of the texts, int64 (n,).
        lengths: of each of them, int64 (n,).
        capacity: of a bin.
        seed: of the exchange.
    """

    def __init__(self, index: Tensor, lengths: Tensor, capacity: int, seed: int) -> None:
        self.index, self.lengths, self.seed = index, lengths, seed
        falling = lengths.sort(descending=True).values
        self.slots = first_fit_decreasing(falling.tolist(), capacity)
        self.filled = torch.tensor([int(falling[torch.tensor(one)].sum()) for one in self.slots])
        self._orders: dict[int, Tensor] = {}  # of the last passes

    def texts(self, number: int, visit: int) -> list[int]:
        """Positions of the texts in a bin, in one pass."""
        if visit not in self._orders:
            self._orders = {**dict(list(self._orders.items())[-1:]), visit: self._order(visit)}
        return self._orders[visit][torch.tensor(self.slots[number])].tolist()

    def _order(self, visit: int) -> Tensor:
        """The texts with falling lengths; those of one length in the order of the pass."""
        seed = counter_bits(self.seed, torch.tensor([visit]), torch.tensor([-3]), 1).item()
        drawn = torch.randperm(len(self.index), generator=torch.Generator().manual_seed(int(seed)))
        return self.index[drawn[self.lengths[drawn].argsort(descending=True, stable=True)]]
