"""The pooled features of any network: what probes, k-NN and linear evaluation read."""

import torch
from torch import Tensor, nn

from lit_kd.models.modes import eval_mode
from lit_kd.models.taps import FeatureTaps, embedding_path


class PooledFeatures:
    """Calls a network and gives its pooled features (B, C) instead of its output.

    Args:
        network: any module; a wrapper with the network in its attribute ``module``, such as a teacher, is called
            as it is and tapped inside.
        layer: dotted path of the features, ``path:input`` for a module's input; a map (B, C, H, W) is averaged over
            its positions. None: the input of the classifier that timm's ``default_cfg`` names; of a network without
            one, its output.

    Raises:
        ValueError: the path does not exist, or, when called, its output is neither (B, C) nor (B, C, H, W).

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2))
        >>> PooledFeatures(network, "1")(torch.zeros(1, 3, 4, 4)).shape
        torch.Size([1, 5])
    """

    def __init__(self, network: nn.Module, layer: str | None = None) -> None:
        self.network = network
        inner = getattr(network, "module", network)
        if layer is None and isinstance((getattr(inner, "default_cfg", None) or {}).get("classifier"), str):
            layer = embedding_path(inner)
        self._taps = None if layer is None else FeatureTaps(inner, [layer])

    def __call__(self, image: Tensor) -> Tensor:
        """Features (B, C) in the mode the network is in, with a graph where it makes one."""
        if self._taps is None:
            return self._pool(self.network(image), "the output")
        with self._taps as recorded:
            self.network(image)
        path = self._taps.paths[0]
        return self._pool(recorded[path], f"layer {path!r}")

    @torch.no_grad()
    def evaluate(self, image: Tensor) -> Tensor:
        """Features (B, C) as an evaluation sees them: eval mode, no graph, half precision widened to float32.

        Running statistics stay as they are; each sub-module's own mode is restored.
        """
        with eval_mode(self.network):
            features = self(image)
        return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features

    def _pool(self, features: Tensor, where: str) -> Tensor:
        shape = tuple(getattr(features, "shape", ()))
        if len(shape) not in (2, 4):
            raise ValueError(
                f"{type(self.network).__name__} gives {shape or type(features).__name__} as {where}, which is neither "
                "(B, C) nor (B, C, H, W): name another layer."
            )
        return features.mean((2, 3)) if len(shape) == 4 else features
