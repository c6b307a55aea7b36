"""Maps of a network by their depth, and what of the network they depend on."""

from typing import Any

from torch import Tensor, nn

from lit_kd.models.taps import stage_paths


def last_stages(network: nn.Module, number: int) -> list[str]:
    """Paths of the maps that end the last stages of a network, shallow to deep.

    Raises:
        ValueError: timm does not name its stages, or there are fewer.

    Example:
        >>> from lit_kd.models import vision_model
        >>> last_stages(vision_model("resnet8", 10), 2)
        ['backbone.layer2', 'backbone.layer3']
    """
    stages = stage_paths(network) if getattr(network, "feature_info", None) else []
    if not 1 <= number <= len(stages):
        raise ValueError(
            f"levels={number}, but {type(network).__name__} names {len(stages)} stages in its feature_info: give a "
            "number from 1 up to that, or the dotted paths of the maps, shallow to deep."
        )
    return stages[-number:]


def check_map(network: nn.Module, path: str, found: Any) -> Tensor:
    """What a layer gave for a square image, if that is a map (B, C, H, W).

    Raises:
        ValueError: it is not.
    """
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    what = f"Level {path!r} of {type(network).__name__} gives {shape}"
    if not isinstance(found, Tensor) or found.ndim != 4:
        raise ValueError(
            f"{what}, but visual words need maps (B, C, H, W): name a layer with places, such as a stage of a "
            "convolutional network."
        )
    if found.shape[1] == found.shape[2] != found.shape[3]:
        raise ValueError(
            f"{what}, channels last, but visual words need maps (B, C, H, W): permute them in a module of your own and "
            "name that."
        )
    return found


def freeze_unused(network: nn.Module, output: Tensor) -> list[str]:
    """Freeze the parameters that ``output`` does not depend on, by its graph; their names.

    Without that, DDP waits for gradients that never come.
    """
    used, seen, waiting = set(), set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            used.add(id(node.variable))
        waiting.extend(following for following, _ in node.next_functions)
    idle = {name: p for name, p in network.named_parameters() if p.requires_grad and id(p) not in used}
    for parameter in idle.values():
        parameter.requires_grad_(False)
    return list(idle)
