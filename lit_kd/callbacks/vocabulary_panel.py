"""A picture of a vocabulary: how much its words are used, and what some of them look like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from lit_kd.callbacks.network_probe import NetworkProbe, Stage, even_share
from lit_kd.callbacks.word_maps import WordMaps
from lit_kd.checks import check_whole
from lit_kd.datamodules.batch import unpack
from lit_kd.files import replacing


class VocabularyPanel(NetworkProbe):
    """Draws for each level the sorted use of its words, and the image patches nearest to some of them.

    Written as ``vocabulary_<level>.png`` into the run's log folder when a fit or test ends. The images are taken
    evenly from the batches of the last validation, or of the test (of several loaders, the first). A word's patches
    are those around the places with the smallest squared distance to it, one an image, two strides of the map wide.
    The words are spread over the used ones, from the most to the least used.

    Args:
        levels: see :class:`lit_kd.callbacks.word_maps.WordMaps`.
        network: dotted path of the network in the module.
        num_words: rows.
        num_patches: columns.
        max_samples: images to search, of each rank; the picture is that of rank 0.

    Raises:
        ModuleNotFoundError: without the extra ``plots``.
        ValueError: a path does not exist, a count is not positive.
    """

    def __init__(
        self,
        levels: Mapping[str, str] | None = None,
        network: str = "teacher",
        num_words: int = 8,
        num_patches: int = 8,
        max_samples: int = 256,
    ) -> None:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("VocabularyPanel needs matplotlib: pip install 'lit-kd[plots]'.") from error
        check_whole(num_words=num_words, num_patches=num_patches, max_samples=max_samples)
        super().__init__(network)
        self.levels = levels
        self.num_words, self.num_patches, self.max_samples = num_words, num_patches, max_samples
        self._words: WordMaps | None = None
        self._images: list[Tensor] = []

    def find(self, pl_module: LightningModule) -> None:
        """Find network and vocabularies."""
        if self._words is None or self._words.module is not pl_module:
            self._words = WordMaps(pl_module, self.network, self.levels)

    def begin(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Begin anew."""
        self._images = []

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: Stage) -> None:
        """Keep some images."""
        batches = trainer.num_val_batches if stage == "val" else trainer.num_test_batches
        taken = sum(map(len, self._images))
        self._images.append(even_share(unpack(batch)[0], batches[0], self.max_samples, taken))

    # Picture

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self.draw(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw."""
        self.draw(trainer)

    @torch.no_grad()
    def draw(self, trainer: Trainer) -> None:
        """Compute the maps of the kept images and write one picture a level on rank 0."""
        assert self._words is not None
        if not self._images:
            rank_zero_warn("VocabularyPanel draws patches of validation images, and there was no validation.")
            return
        images = torch.cat(self._images)
        parts = [self._words.maps(trainer, part) for part in images.split(64)]
        for level, (name, maps) in enumerate(zip(self._words.names, zip(*parts, strict=True), strict=True)):
            features, words, border = torch.cat(maps), self._words.words(level), self._words.borders[level]
            uses = self._words.nearest(level, features).bincount(minlength=len(words)).cpu()
            chosen = spread_words(uses, self.num_words)
            patches = [nearest_patches(images, features, words[k], self.num_patches, border).cpu() for k in chosen]
            path = Path(trainer.log_dir or trainer.default_root_dir) / f"vocabulary_{name}.png"
            _write(path, f"Vocabulary of {name}, {len(images)} images", uses, chosen, patches)
        self._images = []


def spread_words(uses: Tensor, count: int) -> Tensor:
    """At most ``count`` indices of used words, evenly from the most to the least used; uses (K,) int64."""
    order = uses.argsort(descending=True, stable=True)[: int((uses > 0).sum())]
    return order[torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()]


def nearest_patches(images: Tensor, features: Tensor, word: Tensor, count: int, border: int = 0) -> Tensor:
    """The patches (n, channels, side, side) around the places nearest to a word, nearest first, one an image.

    Args:
        images: (B, channels, H, W).
        features: their maps (B, C, h, w) without the border.
        word: (C,).
        count: n, at most B.
        border: places that were dropped on each side of the maps.
    """
    distance = (features - word[:, None, None]).square().sum(1)  # (B, h, w)
    least, place = distance.flatten(1).min(1)
    chosen = least.argsort()[:count]
    columns, (height, width) = distance.shape[2], images.shape[2:]
    stride = height / (distance.shape[1] + 2 * border), width / (columns + 2 * border)
    side = 2 * max(1, int(stride[0]))
    padded = F.pad(images, (side // 2,) * 4)  # a place at the edge still has a whole patch
    patches = []
    for image, at in zip(chosen.tolist(), place[chosen].tolist(), strict=True):
        top = int((at // columns + border + 0.5) * stride[0])  # the centre, which padding makes the patch's corner
        left = int((at % columns + border + 0.5) * stride[1])
        patches.append(padded[image, :, top : top + side, left : left + side])
    return torch.stack(patches)


@rank_zero_only
def _write(path: Path, title: str, uses: Tensor, chosen: Tensor, patches: list[Tensor]) -> None:
    from matplotlib.figure import Figure

    columns = max(map(len, patches))
    figure = Figure(figsize=(5 + 0.8 * columns, 0.8 * max(len(patches), 4) + 0.6), layout="constrained")
    panels: Any = figure.subfigures(1, 2, width_ratios=(5, 0.8 * columns))
    left, right = panels
    axis = left.subplots()
    axis.bar(range(len(uses)), uses.sort(descending=True).values, width=1.0)
    axis.set_yscale("symlog", linthresh=1)
    axis.set_xlabel("word, by use")
    axis.set_ylabel("places")
    axis.set_title(f"{int((uses > 0).sum())} of {len(uses)} words used", fontsize=9)
    axes = right.subplots(len(patches), columns, squeeze=False)
    for row, (word, found) in enumerate(zip(chosen.tolist(), patches, strict=True)):
        for column in range(columns):
            axes[row][column].set_xticks([])
            axes[row][column].set_yticks([])
            if column < len(found):
                axes[row][column].imshow(found[column].permute(1, 2, 0).squeeze(-1).clamp(0, 1), cmap="gray")
        axes[row][0].set_ylabel(f"{word}\n{int(uses[word])}x", fontsize=7, rotation=0, labelpad=14, va="center")
    figure.suptitle(title, fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
