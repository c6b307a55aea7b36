"""What all CIFAR networks share: timm's interface, initialisation and registration."""

import sys
import warnings
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    model_entrypoint,
    register_model,
)
from torch import Tensor, nn

CIFAR_CFG: dict[str, Any] = {
    "num_classes": 100,
    "input_size": (3, 32, 32),
    "mean": (0.5071, 0.4867, 0.4408),
    "std": (0.2675, 0.2565, 0.2761),
    "crop_pct": 1.0,
    "classifier": "linear",
}

conv3x3 = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)


class CIFARNetwork(nn.Module):
    """An image network with timm's interface: features, average pooling, dropout and ``linear``.

    A subclass builds a trunk, calls ``add_head``, sets ``feature_info`` and implements ``forward_features``.

    Attributes:
        num_classes: Number of logits; 0 gives the pooled features instead.
        num_features: Channels of the last feature map, the width of the pooled features.
        head_hidden_size: The same, under timm's name for what the classifier reads.
        feature_info: One dict a stage, as the papers' feature losses use them. ``num_chs`` and ``reduction``
            (for 32x32 pixels) describe the map that the sub-module ``module`` returns. ``preact`` is the path
            of that map before its activation: ``path:input`` is what the sub-module is given.
        default_cfg: timm's description, also as ``pretrained_cfg``: classifier, input size, mean and std of
            CIFAR-100. Set by the registered functions.
    """

    num_classes: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]

    def add_head(self, num_features: int, num_classes: int, drop_rate: float) -> None:
        """Add pooling, dropout and classifier, once the trunk stands."""
        self.num_features = self.head_hidden_size = num_features
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)

    def initialize(self, linear_std: float | None = None) -> None:
        """Draw convolutions He-normal (fan out), the classifier with ``linear_std`` if given; zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear) and linear_std is not None:
                nn.init.normal_(module.weight, std=linear_std)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        """Return the classifier: ``nn.Linear``, or ``nn.Identity`` for ``num_classes=0``."""
        return self.linear

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in place, on the device and in the dtype of the network."""
        self.num_classes = num_classes
        linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.linear = linear.to(next(self.parameters()))

    def forward_features(self, image: Tensor) -> Tensor:
        """Map an image (B, in_chans, H, W) to the last feature map (B, num_features, h, w)."""
        raise NotImplementedError

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool (B, num_features, h, w) and, unless ``pre_logits``, map to logits (B, num_classes)."""
        pooled = self.head_drop(self.global_pool(features).flatten(1))
        return pooled if pre_logits else self.linear(pooled)

    def forward(self, image: Tensor) -> Tensor:
        """Map an image (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(image))


def register(network: Callable[..., CIFARNetwork]) -> Callable[..., nn.Module]:
    """Register a function that builds a CIFAR network with timm, under the function's name.

    Where timm has a network of that name (its ImageNet ``vgg13``), ``pretrained=True`` or a tag, as in
    "vgg13.tv_in1k", still builds it, and its tags stay listed.

    Raises:
        ValueError: From the registered function, if pretrained weights are asked for and timm has none.
    """
    name = network.__name__
    timm_network = model_entrypoint(name) if is_model(name) else None
    # register_model takes the tags of a name from ``default_cfgs`` in the module of the function.
    if timm_network is None:
        cfgs = generate_default_cfgs({name: CIFAR_CFG})
    else:
        cfgs = sys.modules[timm_network.__module__].default_cfgs
    vars(sys.modules[network.__module__]).setdefault("default_cfgs", {})[name] = cfgs[name]

    @wraps(network)
    def entry_point(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
        if not pretrained and not pretrained_cfg:
            # For features_only=True: hooks on the last three stages, unless out_indices says otherwise.
            feature_cfg = {"feature_cls": "hook", "out_indices": (-3, -2, -1)}
            return build_model_with_cfg(network, name, False, CIFAR_CFG, feature_cfg=feature_cfg, **kwargs)
        if timm_network is None:
            raise ValueError(f"{name} has no pretrained weights: pass checkpoint=<file> instead.")
        return timm_network(pretrained=pretrained, pretrained_cfg=pretrained_cfg, **kwargs)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"Overwriting {name} in registry")
        return register_model(entry_point)
