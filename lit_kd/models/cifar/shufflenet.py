"""CIFAR ShuffleNets of RepDistiller: V1, Zhang et al., arXiv 1707.01083; V2, Ma et al., arXiv 1807.11164."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from lit_kd.models.cifar.network import CIFARNetwork, register

STEM_PLANES = 24


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, shuffle, 3x3 a channel, grouped 1x1, and a shortcut; with stride 2 where channels change.

    With stride 2 the average-pooled input is not added but appended, and makes up the missing channels.
    """

    def __init__(self, in_planes: int, planes: int, groups: int = 3) -> None:
        super().__init__()
        self.downsample = in_planes != planes
        out_planes = planes - in_planes if self.downsample else planes
        hidden = out_planes // 4
        first_groups = 1 if in_planes == STEM_PLANES else groups  # too few channels to group
        self.residual = nn.Sequential(
            Conv2dNormActivation(in_planes, hidden, 1, groups=first_groups),
            nn.ChannelShuffle(first_groups),
            Conv2dNormActivation(hidden, hidden, 3, stride=2 if self.downsample else 1, groups=hidden),
            Conv2dNormActivation(hidden, out_planes, 1, groups=groups, activation_layer=None),
        )
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if self.downsample else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, planes, H, W), or to half the size where channels change."""
        residual, shortcut = self.residual(x), self.shortcut(x)
        return self.act(torch.cat([residual, shortcut], dim=1) if self.downsample else residual + shortcut)


class ShuffleUnitV2(nn.Module):
    """Convolve half of the channels and leave the rest; with stride 2 both halves come from all channels."""

    def __init__(self, in_planes: int, planes: int) -> None:
        super().__init__()
        half = planes // 2
        self.downsample = in_planes != planes
        right_planes, stride = (in_planes, 2) if self.downsample else (half, 1)
        if self.downsample:
            self.left = nn.Sequential(
                Conv2dNormActivation(in_planes, in_planes, 3, 2, groups=in_planes, activation_layer=None),
                Conv2dNormActivation(in_planes, half, 1, activation_layer=None),
            )
        self.right = nn.Sequential(
            Conv2dNormActivation(right_planes, half, 1),
            Conv2dNormActivation(half, half, 3, stride, groups=half, activation_layer=None),
            Conv2dNormActivation(half, half, 1, activation_layer=None),
        )
        self.act = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, planes, H, W), or to half the size where channels change."""
        left, right = (self.left(x), x) if self.downsample else x.chunk(2, dim=1)
        # A half passed on was rectified before: rectifying both is the same as rectifying the new one.
        return self.shuffle(self.act(torch.cat([left, self.right(right)], dim=1)))


class CIFARShuffleNet(CIFARNetwork):
    """ShuffleNet of 3 stages of 4, 8 and 4 units after a 1x1 stem; the first unit of a stage halves the size.

    Args:
        unit: Builds a unit from its channels in and out: ``ShuffleUnitV1`` or ``ShuffleUnitV2``.
        widths: Channels of the three stages.
        last_width: Channels of a 1x1 convolution after the last stage (V2), None for none (V1).
        num_classes: Number of logits.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        unit: Callable[[int, int], nn.Module],
        widths: Sequence[int],
        last_width: int | None = None,
        num_classes: int = 100,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()

        def stage(in_planes: int, planes: int, depth: int) -> nn.Sequential:
            return nn.Sequential(unit(in_planes, planes), *(unit(planes, planes) for _ in range(depth - 1)))

        self.conv1 = Conv2dNormActivation(in_chans, STEM_PLANES, 1)
        self.layer1 = stage(STEM_PLANES, widths[0], depth=4)
        self.layer2 = stage(widths[0], widths[1], depth=8)
        self.layer3 = stage(widths[1], widths[2], depth=4)
        self.conv2 = Conv2dNormActivation(widths[2], last_width, 1) if last_width else nn.Identity()
        self.add_head(last_width or widths[2], num_classes, drop_rate)
        self.feature_info = [
            {"num_chs": widths[0], "reduction": 2, "module": "layer1", "preact": "layer1.3.act:input"},
            {"num_chs": widths[1], "reduction": 4, "module": "layer2", "preact": "layer2.7.act:input"},
            {"num_chs": widths[2], "reduction": 8, "module": "layer3", "preact": "layer3.3.act:input"},
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, num_features, H / 8, W / 8)."""
        return self.conv2(self.layer3(self.layer2(self.layer1(self.conv1(image)))))


@register
def shufflenetv1(**kwargs: Any) -> CIFARShuffleNet:
    """ShuffleNetV1 of three groups: 240, 480 and 960 channels."""
    return CIFARShuffleNet(ShuffleUnitV1, (240, 480, 960), **kwargs)


@register
def shufflenetv2(**kwargs: Any) -> CIFARShuffleNet:
    """ShuffleNetV2 1x: 116, 232 and 464 channels, and 1024 before pooling."""
    return CIFARShuffleNet(ShuffleUnitV2, (116, 232, 464), last_width=1024, **kwargs)
