"""CIFAR ResNets: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2."""

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lit_kd.checks import check_choice
from lit_kd.models.cifar.network import CIFARNetwork, conv3x3, register


class PadShortcut(nn.Module):
    """Option A: every stride-th pixel, padded with zero channels on both sides; no parameters."""

    def __init__(self, planes: int, stride: int) -> None:
        super().__init__()
        self.planes, self.stride = planes, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, planes, ceil(H / stride), ceil(W / stride))."""
        pad = (self.planes - x.shape[1]) // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, pad, pad))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, rectified after their sum."""

    def __init__(self, in_planes: int, planes: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_planes, planes, stride=stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.act1 = nn.ReLU()
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module
        if in_planes == planes:
            self.downsample = nn.Identity()
        elif shortcut == "A":
            self.downsample = PadShortcut(planes, stride)
        else:
            convolution = nn.Conv2d(in_planes, planes, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(planes))
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, planes, H / stride, W / stride)."""
        out = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(out)) + self.downsample(x))


class CIFARResNet(CIFARNetwork):
    """ResNet of 3 stages of (depth - 2) / 6 basic blocks.

    Args:
        depth: Number of weighted layers, 6n + 2.
        widths: Channels of the stem and of the three stages.
        shortcut: Where channels change: "A" pads with zeros (He et al.), "B" convolves 1x1 (RepDistiller).
        num_classes: Number of logits.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.

    Raises:
        ValueError: If ``depth`` is not 6n + 2, or ``shortcut`` neither "A" nor "B".
    """

    def __init__(
        self,
        depth: int,
        widths: Sequence[int] = (16, 16, 32, 64),
        shortcut: Literal["A", "B"] = "A",
        num_classes: int = 100,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth={depth} must be 6n + 2 (8, 14, 20, ...).")
        check_choice(("A", "B"), shortcut=shortcut)
        blocks = (depth - 2) // 6

        def stage(in_planes: int, planes: int, stride: int) -> nn.Sequential:
            first = BasicBlock(in_planes, planes, stride, shortcut)
            return nn.Sequential(first, *(BasicBlock(planes, planes, 1, shortcut) for _ in range(blocks - 1)))

        self.conv1 = conv3x3(in_chans, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        self.layer1 = stage(widths[0], widths[1], stride=1)
        self.layer2 = stage(widths[1], widths[2], stride=2)
        self.layer3 = stage(widths[2], widths[3], stride=2)
        self.add_head(widths[3], num_classes, drop_rate)
        self.initialize()
        self.feature_info = [
            {
                "num_chs": widths[i],
                "reduction": 2 ** (i - 1),
                "module": f"layer{i}",
                "preact": f"layer{i}.{blocks - 1}.act2:input",
            }
            for i in (1, 2, 3)
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, widths[3], H / 4, W / 4)."""
        x = self.act1(self.bn1(self.conv1(image)))
        return self.layer3(self.layer2(self.layer1(x)))


@register
def resnet8(**kwargs: Any) -> CIFARResNet:
    """ResNet-8: one block a stage, 16, 32 and 64 channels."""
    return CIFARResNet(8, **kwargs)


@register
def resnet14(**kwargs: Any) -> CIFARResNet:
    """ResNet-14: two blocks a stage, 16, 32 and 64 channels."""
    return CIFARResNet(14, **kwargs)


@register
def resnet20(**kwargs: Any) -> CIFARResNet:
    """ResNet-20: three blocks a stage, 16, 32 and 64 channels."""
    return CIFARResNet(20, **kwargs)


@register
def resnet32(**kwargs: Any) -> CIFARResNet:
    """ResNet-32: five blocks a stage, 16, 32 and 64 channels."""
    return CIFARResNet(32, **kwargs)


@register
def resnet44(**kwargs: Any) -> CIFARResNet:
    """ResNet-44: seven blocks a stage, 16, 32 and 64 channels."""
    return CIFARResNet(44, **kwargs)


@register
def resnet56(**kwargs: Any) -> CIFARResNet:
    """ResNet-56: nine blocks a stage, 16, 32 and 64 channels."""
    return CIFARResNet(56, **kwargs)


@register
def resnet110(**kwargs: Any) -> CIFARResNet:
    """ResNet-110: eighteen blocks a stage, 16, 32 and 64 channels."""
    return CIFARResNet(110, **kwargs)


@register
def resnet8x4(shortcut: Literal["A", "B"] = "B", **kwargs: Any) -> CIFARResNet:
    """ResNet-8x4 of RepDistiller: one block a stage, 64, 128 and 256 channels after a stem of 32."""
    return CIFARResNet(8, (32, 64, 128, 256), shortcut, **kwargs)


@register
def resnet32x4(shortcut: Literal["A", "B"] = "B", **kwargs: Any) -> CIFARResNet:
    """ResNet-32x4 of RepDistiller: five blocks a stage, 64, 128 and 256 channels after a stem of 32."""
    return CIFARResNet(32, (32, 64, 128, 256), shortcut, **kwargs)
