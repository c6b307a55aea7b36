"""Vision networks that take pixels in [0, 1]: the timm registry with the normalisation as first layer."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import lit_kd.models.cifar  # noqa: F401  registers the CIFAR networks with timm
from lit_kd.checks import check_list, check_positive, check_whole
from lit_kd.models.checkpoint import load_checkpoint


class Normalize(nn.Module):
    """``(image - mean) / std`` per channel, image (B, C, H, W) in [0, 1]; the constants are saved buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        for value in std:
            check_positive(std=value)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image, same shape."""
        return (image - self.mean) / self.std


class VisionModel(nn.Module):
    """A network that is complete: pixels in [0, 1] in, logits out. Built by :func:`vision_model`.

    Attributes:
        normalize: the first layer: :class:`Normalize`, or nothing for images that come normalised.
        backbone: the timm network, classifier included.
        architecture: the arguments of :func:`vision_model` that build it again (for export).
    """

    def __init__(self, normalize: nn.Module, backbone: nn.Module, architecture: dict[str, Any]) -> None:
        super().__init__()
        self.normalize = normalize
        self.backbone = backbone
        self.architecture = architecture

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return int(self.architecture["num_classes"])

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Stages as timm describes them, with paths as seen from here."""
        return [
            {key: f"backbone.{value}" if key in ("module", "preact") else value for key, value in stage.items()}
            for stage in getattr(self.backbone, "feature_info", [])
        ]

    @property
    def default_cfg(self) -> dict[str, Any]:
        """Default configuration as timm keeps it, with the classifier's path as seen from here."""
        config = dict(getattr(self.backbone, "default_cfg", None) or {})
        if isinstance(config.get("classifier"), str):
            config["classifier"] = f"backbone.{config['classifier']}"
        return config

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W) in [0, 1]."""
        return self.backbone(self.normalize(image))


def vision_model(
    name: str,
    num_classes: int,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    in_chans: int = 3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    normalize: bool = True,
    channels_last: bool = False,
    cifar_stem: bool = False,
    model_kwargs: dict[str, Any] | None = None,
) -> VisionModel:
    """Any network of timm's registry, the CIFAR networks of the distillation literature included.

    Args:
        name: name in ``timm.list_models()``, e.g. ``resnet20``, ``wrn_40_2``, ``resnet50``.
        num_classes: number of logits.
        pretrained: timm's weights for that name.
        checkpoint: a file to start from, see :func:`lit_kd.models.load_checkpoint`. Its normalisation constants, if it
            has some, replace ``mean`` and ``std``: the weights were trained with them.
        in_chans: channels of the image.
        mean: per channel, of pixels in [0, 1]; None: the network's own constants.
        std: likewise.
        normalize: False for images that the data module has normalised already.
        channels_last: keep the weights in that memory format, which convolutions pass on to their outputs: faster on
            a CPU, and on a GPU under mixed precision (docs/benchmarks.md); the numbers agree but for rounding.
        cifar_stem: for timm's ResNets, ResNeXts and their kin on images of 32x32: the first convolution is 3x3 with
            stride 1 instead of 7x7 with stride 2, and there is no max pooling.
        model_kwargs: further arguments of the network, e.g. ``{"shortcut": "B"}``.

    Raises:
        ValueError: a name that timm does not know (with the nearest names), a checkpoint that does not fit, or a
            ``cifar_stem`` for a network without ``conv1`` and ``maxpool``.
        FileNotFoundError: no such checkpoint.

    Example:
        >>> vision_model("resnet20", num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    check_whole(0, num_classes=num_classes)
    check_whole(in_chans=in_chans)
    check_list(mean=mean or [], std=std or [])
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(f"name={name!r} is no network of timm's registry; near: {', '.join(near) or 'none'}.")
    backbone: Any = timm.create_model(
        name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **(model_kwargs or {})
    )
    if cifar_stem:
        _shrink_stem(backbone)
    architecture = {
        "name": name,
        "num_classes": num_classes,
        "in_chans": in_chans,
        "normalize": normalize,
        "cifar_stem": cifar_stem,
        "model_kwargs": model_kwargs or {},
    }
    constants = [
        _per_channel(own or backbone.default_cfg[key], in_chans) for key, own in (("mean", mean), ("std", std))
    ]
    model = VisionModel(Normalize(*constants) if normalize else nn.Identity(), backbone, architecture)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def _shrink_stem(backbone: Any) -> None:
    stem = getattr(backbone, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(backbone, "maxpool"):
        raise ValueError(
            f"cifar_stem=True needs a network that starts with conv1 and maxpool; {type(backbone).__name__} does not."
        )
    backbone.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's
    backbone.maxpool = nn.Identity()
    for stage in backbone.feature_info:
        stage["reduction"] = max(1, stage["reduction"] // 4)


def _per_channel(constants: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(constants) == channels:
        return tuple(constants)
    return (sum(constants) / len(constants),) * channels
