"""Signs of collapse in the log."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_kd.callbacks.network_probe import NetworkProbe, Stage, even_share, gather_rows
from lit_kd.callbacks.word_maps import WordMaps, own_levels
from lit_kd.checks import check_whole
from lit_kd.datamodules.batch import unpack
from lit_kd.losses.collapse import effective_rank, feature_spread, mean_pairwise_cosine


class CollapseMonitor(NetworkProbe):
    """Logs what the features of a network, and the use of visual words, look like on the validation set.

    Of at most ``max_samples`` images, taken evenly from the batches; first of their pooled features f:

        val/effective_rank_<network>   exp(entropy of the normalised singular values), 1 to min(N, C); falls to 1
        val/cosine_<network>           mean cosine over pairs of images; rises to 1
        val/spread_<network>           mean std of f / |f|, times sqrt(C); near 1, falls to 0

    Then, for each level of words, of every place of their maps, without the border:

        val/words_in_use_<level>       words that are nearest to some place; falls to a few
        val/words_perplexity_<level>   exp(entropy of their shares), 1 to K; falls to 1

    The numbers are those of all ranks; of several loaders, of the first. The labels are not looked at.

    Args:
        network: see :class:`NetworkProbe`.
        layer: likewise.
        max_samples: images to look at, an equal share from each rank.
        word_network: network of the words' maps.
        word_levels: see :class:`lit_kd.callbacks.word_maps.WordMaps`; a module without any has no words counted.

    Raises:
        ValueError: see :class:`NetworkProbe`; fewer than 2 samples.
    """

    stages = ("val",)

    def __init__(
        self,
        network: str = "student",
        layer: str | None = None,
        max_samples: int = 2048,
        word_network: str = "teacher",
        word_levels: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(network, layer)
        check_whole(2, max_samples=max_samples)
        self.max_samples = max_samples
        self.word_network = word_network
        self.word_levels = word_levels
        self._words: WordMaps | None = None
        self._reset()

    def _reset(self) -> None:
        self._features: list[Tensor] = []
        self._uses: list[Tensor] = []

    def find(self, pl_module: LightningModule) -> None:
        """Find the networks."""
        super().find(pl_module)
        if self._words is None or self._words.module is not pl_module:
            levels = own_levels(pl_module) if self.word_levels is None else self.word_levels
            self._words = WordMaps(pl_module, self.word_network, levels) if levels else None

    def begin(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Begin anew."""
        self._reset()
        if self._words is not None:
            counts = [len(self._words.words(level)) for level in range(len(self._words.names))]
            self._uses = [torch.zeros(k, dtype=torch.int64, device=pl_module.device) for k in counts]

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: Stage) -> None:
        """Keep features, count words."""
        limit, taken = -(-self.max_samples // trainer.world_size), sum(map(len, self._features))
        image = even_share(unpack(batch)[0], trainer.num_val_batches[0], limit, taken)
        if not len(image):
            return
        self._features.append(self.features(trainer, image))
        if self._words is not None:
            for level, maps in enumerate(self._words.maps(trainer, image)):
                self._uses[level] += self._words.nearest(level, maps).bincount(minlength=len(self._uses[level]))

    def report(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Log."""
        if trainer.sanity_checking or not self._features:
            return
        features = gather_rows(trainer, torch.cat(self._features))[: self.max_samples]
        numbers = {
            f"val/effective_rank_{self.network}": effective_rank(features),
            f"val/cosine_{self.network}": mean_pairwise_cosine(features),
            f"val/spread_{self.network}": feature_spread(features),
        }
        if self._words is not None:
            for name, uses in zip(self._words.names, self._uses, strict=True):
                uses = trainer.strategy.reduce(uses, reduce_op="sum")
                numbers[f"val/words_in_use_{name}"] = (uses > 0).sum().float()
                numbers[f"val/words_perplexity_{name}"] = torch.special.entr(uses / uses.sum()).sum().exp()
        pl_module.log_dict(numbers, sync_dist=True)
        self._reset()
