"""Features of any network by the dotted path of a sub-module."""

import difflib
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from lit_kd.checks import check_list, check_network

_INPUT = ":input"


class FeatureTaps:
    """Records outputs of sub-modules while it is entered.

    Hooks are registered once, so that a network compiled later contains them, and record only inside the ``with``
    block: validation and extra forwards leave nothing behind, and nothing outlives the step, because the dictionary
    belongs to the caller. A repeated forward inside the block overwrites.

    Args:
        network: any module.
        paths: dotted paths as in ``network.named_modules()``; ``path:input`` taps that module's first input instead,
            e.g. ``fc:input`` is the embedding under the classifier.

    Raises:
        ValueError: a path does not exist; the sentence names the nearest ones.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        >>> taps = FeatureTaps(network, ["0", "1:input"])
        >>> with taps as features:
        ...     logits = network(torch.ones(2, 4))
        >>> [tuple(features[path].shape) for path in taps.paths]
        [(2, 3), (2, 3)]
    """

    def __init__(self, network: nn.Module, paths: list[str]) -> None:
        check_network(network=network)
        check_list(paths=paths)
        modules = dict(network.named_modules())
        self.paths = list(paths)
        self._features: dict[str, Tensor] | None = None
        for path in self.paths:
            name = path.removesuffix(_INPUT)
            if name not in modules:
                near = difflib.get_close_matches(name, modules, n=3, cutoff=0.3) or list(modules)[1:4]
                raise ValueError(f"{type(network).__name__} has no sub-module {name!r}; nearest: {', '.join(near)}.")
            if path.endswith(_INPUT):
                modules[name].register_forward_pre_hook(partial(self._record_input, path))
            else:
                modules[name].register_forward_hook(partial(self._record_output, path))

    def __enter__(self) -> dict[str, Tensor]:
        self._features = {}
        return self._features

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._features = None

    def _record_input(self, path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._features is not None:
            self._features[path] = args[0]

    def _record_output(self, path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._features is not None:
            self._features[path] = output


def stage_paths(network: nn.Module, preactivation: bool = False) -> list[str]:
    """Paths of the maps that end each stage, shallow to deep, from timm's ``feature_info``.

    Args:
        network: a timm network or a ``vision_model``.
        preactivation: the maps before the last ReLU of each stage, where the network says how (ours do).

    Raises:
        ValueError: the network has no ``feature_info``; name the layers then.
    """
    info = getattr(network, "feature_info", None)
    if not info:
        raise ValueError(
            f"{type(network).__name__} has no timm feature_info to find its stages by: "
            "name them in student_layers / teacher_layers."
        )
    return [stage.get("preact", stage["module"]) if preactivation else stage["module"] for stage in info]


def embedding_path(network: nn.Module) -> str:
    """Path of the pooled embedding: the input of the classifier that timm's ``default_cfg`` names.

    Raises:
        ValueError: the network has no ``default_cfg`` with a classifier; name the layer then.
    """
    classifier = (getattr(network, "default_cfg", None) or {}).get("classifier")
    if not isinstance(classifier, str):
        raise ValueError(
            f"{type(network).__name__} does not say which module is its classifier (timm's default_cfg): "
            "name the embedding in student_layers / teacher_layers, e.g. 'fc:input'."
        )
    return classifier + _INPUT
