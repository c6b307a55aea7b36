"""Which visual word each place of an image is, for monitors and pictures of a vocabulary."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lit_kd.callbacks.network_probe import find_attribute
from lit_kd.losses.collapse import nearest_words
from lit_kd.models.modes import eval_mode
from lit_kd.models.taps import FeatureTaps


class WordMaps:
    """Feature maps of a network in eval mode, and the vocabularies that their places are compared with.

    Args:
        pl_module: the module that holds network and vocabularies.
        network: dotted path of the network, or of a wrapper with the network in its attribute ``module``.
        levels: for each level the path of its map in the network, and the dotted path in the module of its words: a
            :class:`lit_kd.models.Vocabulary`, whose border is dropped, or a tensor (K, C). E.g.
            ``{"backbone.layer4": "vocabularies.1"}``. None: ``levels`` and ``vocabularies`` of the module, as
            :class:`lit_kd.methods.OBoWModule` has them.

    Raises:
        ValueError: a path does not exist; the module has no levels of its own.
    """

    def __init__(self, pl_module: LightningModule, network: str, levels: Mapping[str, str] | None = None) -> None:
        if levels is None:
            levels = own_levels(pl_module)
        if not levels:
            raise ValueError(
                f"{type(pl_module).__name__} has no vocabularies of its own: name the maps and words in levels."
            )
        self.module = pl_module
        self.network: nn.Module = find_attribute(pl_module, network, nn.Module)
        self.names = [path.removeprefix("backbone.") for path in levels]
        self._taps = FeatureTaps(getattr(self.network, "module", self.network), list(levels))
        self._sources = list(levels.values())
        self.borders = [int(getattr(self._source(level), "border", 0)) for level in range(len(levels))]

    def _source(self, level: int) -> Any:
        return find_attribute(self.module, self._sources[level], (Tensor, nn.Module))

    def words(self, level: int) -> Tensor:
        """The vocabulary (K, C) of a level as it is now."""
        source = self._source(level)
        return (source if isinstance(source, Tensor) else source.words).detach()

    @torch.no_grad()
    def maps(self, trainer: Trainer, image: Tensor) -> list[Tensor]:
        """Feature maps (B, C, h, w) of each level, float32, border dropped."""
        with trainer.precision_plugin.forward_context(), eval_mode(self.network), self._taps as recorded:
            self.network(image)
        whole = [recorded[path].float() for path in self._taps.paths]
        return [
            maps[:, :, edge : maps.shape[2] - edge, edge : maps.shape[3] - edge]
            for maps, edge in zip(whole, self.borders, strict=True)
        ]

    def nearest(self, level: int, maps: Tensor) -> Tensor:
        """Index of the nearest word at each place of maps (B, C, h, w): (B * h * w,) int64."""
        return nearest_words(maps.permute(0, 2, 3, 1).flatten(0, 2), self.words(level))[0]


def own_levels(pl_module: LightningModule) -> dict[str, str]:
    """The levels that a module has in ``levels`` and ``vocabularies``; none for a module without these."""
    paths: Any = getattr(pl_module, "levels", None) or []
    if not isinstance(getattr(pl_module, "vocabularies", None), nn.ModuleList):
        return {}
    return {path: f"vocabularies.{level}" for level, path in enumerate(paths)}
