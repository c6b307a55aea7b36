"""The vocabulary of OBoW (arXiv:2012.11552) and the head that predicts bags of its words."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist

from lit_kd.checks import check_positive, check_share, check_whole, check_whole_or_none


class Vocabulary(nn.Module):
    """A queue of visual words, one new word from each image, and the running mean distance to the nearest word.

    New words are averages of ``pool_kernel`` x ``pool_kernel`` places of a map whose border was dropped, at one place
    of each image, drawn uniformly; they replace the oldest. The mean distance mu sets the temperature of the codes:

        mu <- decay * mu + (1 - decay) * m,   m = mean over places of min_k |x - v_k|^2

    A step under gradient accumulation is in two parts: each micro-batch stages its words and m, and :meth:`commit`
    changes the buffers once, at the optimizer step. All ranks hold the same vocabulary: words are gathered and m is
    averaged over them, so every rank has to call :meth:`stage` and :meth:`commit`, with as many images.

    Args:
        num_words: K.
        channels: C, of the map.
        border: rows and columns dropped on each of the four sides.
        pool_kernel: 3 as published; 1 takes single places, None the mean of the whole map.
        decay: of the mean distance.

    Attributes:
        words: (K, C), at first max(0, N(0, 1)), not normalised.
        pointer: int64, the row that the next word replaces.
        mean_distance: mu, in squared feature units, at first 0.5.

    Raises:
        ValueError: K or the kernel below 1, a negative border.

    Example:
        >>> vocabulary = Vocabulary(num_words=10, channels=4)
        >>> maps = vocabulary.crop(torch.ones(8, 4, 7, 7))
        >>> maps.shape, vocabulary.sample(maps).shape
        (torch.Size([8, 4, 5, 5]), torch.Size([8, 4]))
        >>> for _ in range(2):
        ...     vocabulary.push(vocabulary.sample(maps))
        >>> vocabulary.pointer
        tensor(6)
    """

    words: Tensor
    pointer: Tensor
    mean_distance: Tensor

    def __init__(
        self, num_words: int, channels: int, border: int = 1, pool_kernel: int | None = 3, decay: float = 0.99
    ) -> None:
        super().__init__()
        check_whole(num_words=num_words, channels=channels)
        check_whole(0, border=border)
        check_whole_or_none(pool_kernel=pool_kernel)
        check_share(decay=decay)
        self.border = border
        self.pool_kernel = pool_kernel
        self.decay = decay
        self.register_buffer("words", torch.randn(num_words, channels).clamp(min=0))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean_distance", torch.tensor(0.5))
        self._staged: list[tuple[Tensor, Tensor]] = []

    @property
    def smallest_map(self) -> int:
        """Height and width that a map needs at least."""
        return 2 * self.border + (self.pool_kernel or 1)

    def crop(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W) without their border.

        Raises:
            ValueError: they are too small.
        """
        height, width = maps.shape[2:]
        if min(height, width) < self.smallest_map:
            raise ValueError(self.too_small(height, width))
        return maps[:, :, self.border : height - self.border, self.border : width - self.border]

    def too_small(self, height: int, width: int) -> str:
        """What is wrong with maps of this size."""
        least = self.smallest_map
        return (
            f"a {height}x{width} map, but border={self.border} and pool_kernel={self.pool_kernel} need at least "
            f"{least}x{least}: lower them for this level, or leave the level out"
        )

    def sample(self, maps: Tensor, uniforms: Tensor | None = None) -> Tensor:
        """One new word from each image.

        Args:
            maps: cropped, (B, C, h, w).
            uniforms: (B,) in [0, 1), where: of n places in row-major order the one at floor(n * u); None: drawn.

        Returns:
            (B, C), float32.
        """
        if self.pool_kernel is None:
            return maps.float().mean((2, 3))
        places = F.avg_pool2d(maps.float(), self.pool_kernel, stride=1).flatten(2)  # (B, C, n)
        if uniforms is None:
            uniforms = torch.rand(len(maps), device=maps.device)
        index = (uniforms * places.shape[2]).long().clamp(max=places.shape[2] - 1)
        return places.gather(2, index[:, None, None].expand(-1, places.shape[1], -1)).squeeze(2)

    @torch.no_grad()
    def push(self, words: Tensor) -> None:
        """Replace the oldest words by those (n, C) of all ranks, going on at row 0 after the last.

        Raises:
            ValueError: they are more than K.
        """
        words = gather_ranks(words)
        self.check_batch(len(words))
        rows = (self.pointer + torch.arange(len(words), device=words.device)) % len(self.words)
        self.words.index_copy_(0, rows, words.to(self.words.dtype))
        self.pointer.add_(len(words)).remainder_(len(self.words))

    def check_batch(self, images: int) -> None:
        """Raise a ValueError where one step brings more new words than there are words."""
        if images > len(self.words):
            raise ValueError(
                f"num_words={len(self.words)} is smaller than the {images} images of a step (batch size x devices x "
                "accumulated batches), each of which brings a word: take more words or smaller batches."
            )

    @torch.no_grad()
    def stage(self, words: Tensor, distance: Tensor) -> Tensor:
        """Keep a micro-batch's words (n, C) and its m for :meth:`commit`.

        Returns:
            The mean distance to use in this micro-batch: mu after the staged ones, which is, without accumulation,
            what :meth:`commit` sets. Targets use the mu that contains their own batch.

        Raises:
            ValueError: more than K words are staged, over all ranks.
        """
        self._staged.append((words, mean_over_ranks(distance.float())))
        self.check_batch(sum(len(words) for words, _ in self._staged) * world_size())
        return self._next_mean()

    @torch.no_grad()
    def commit(self) -> None:
        """Push all staged words and set the mean distance, with m the mean over the micro-batches."""
        if self._staged:
            self.mean_distance.copy_(self._next_mean())
            self.push(torch.cat([words for words, _ in self._staged]))
            self.discard()

    def discard(self) -> None:
        """Forget what is staged."""
        self._staged.clear()

    def _next_mean(self) -> Tensor:
        staged = torch.stack([distance for _, distance in self._staged]).mean()
        return self.decay * self.mean_distance + (1 - self.decay) * staged

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        words, channels = self.words.shape
        return f"num_words={words}, channels={channels}, border={self.border}, pool_kernel={self.pool_kernel}"


class BoWHead(nn.Module):
    """Predicts bags of words by weights that a generator G makes from the words themselves.

        z = kappa f W^T,   W = G(V) = unit(L2 ReLU(BN(L1 unit(V)))),   L1: C_l -> hidden, L2: hidden -> C

    unit() normalises rows; the batch of BN are the K words. There is no bias, and f is not normalised.

    Args:
        word_channels: C_l, of the words.
        channels: C, of the features.
        kappa: 8 for ResNet-50, 5 for ResNet-18.
        learn_kappa: the published runs do not.
        hidden: None: 2 C.

    Raises:
        ValueError: kappa is not positive.

    Example:
        >>> head = BoWHead(word_channels=4, channels=6)
        >>> head(torch.ones(3, 6), torch.rand(10, 4)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        word_channels: int,
        channels: int,
        kappa: float = 8.0,
        learn_kappa: bool = False,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        check_whole(word_channels=word_channels, channels=channels)
        check_whole_or_none(hidden=hidden)
        check_positive(kappa=kappa)
        hidden = 2 * channels if hidden is None else hidden
        self.expand = nn.Linear(word_channels, hidden, bias=False)
        self.norm = nn.BatchNorm1d(hidden)
        self.project = nn.Linear(hidden, channels)
        self.kappa = nn.Parameter(torch.full((1,), float(kappa)), requires_grad=learn_kappa)

    def forward(self, features: Tensor, words: Tensor) -> Tensor:
        """Logits z (N, K) of features (N, C) and words (K, C_l)."""
        return F.linear(self.kappa * features, self.weights(words))

    def weights(self, words: Tensor) -> Tensor:
        """W (K, C), rows of norm 1, of words (K, C_l)."""
        hidden = F.relu(self.norm(self.expand(F.normalize(words, dim=1))))
        return F.normalize(self.project(hidden), dim=1)


class BoWHeads(nn.ModuleList):
    """The heads of all levels, which read one feature. A module of its own, for FSDP shards what has a forward."""

    def forward(self, features: Tensor, words: list[Tensor]) -> list[Tensor]:
        """Logits (N, K) of each level, of features (N, C) and words (K, C_l) of each level."""
        return [head(features, level) for head, level in zip(self, words, strict=True)]


def gather_ranks(rows: Tensor) -> Tensor:
    """Rows (n, ...) of all ranks, in rank order; the rows themselves in a single process. n is the same on each."""
    if world_size() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean over all ranks; the value itself in a single process."""
    if world_size() == 1:
        return value
    value = value / world_size()
    dist.all_reduce(value)
    return value


def world_size() -> int:
    """Number of processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
