"""CIFAR MobileNetV2 of RepDistiller: Sandler et al., arXiv 1801.04381, at half width."""

from typing import Any

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from lit_kd.models.cifar.network import CIFARNetwork, register


class InvertedResidual(nn.Module):
    """Expand 1x1, filter channels 3x3, project 1x1 without activation; a shortcut where the shape stays."""

    def __init__(self, in_planes: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_planes * expansion
        self.conv = nn.Sequential(
            Conv2dNormActivation(in_planes, hidden, 1),
            Conv2dNormActivation(hidden, hidden, 3, stride, groups=hidden),
            Conv2dNormActivation(hidden, planes, 1, activation_layer=None),
        )
        self.has_shortcut = stride == 1 and in_planes == planes

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, planes, H / stride, W / stride)."""
        return x + self.conv(x) if self.has_shortcut else self.conv(x)


class CIFARMobileNetV2(CIFARNetwork):
    """MobileNetV2 of half width, with a sixteenth of the image's size at the end instead of a 32nd.

    torchvision's network can't be taken: RepDistiller's has a 1x1 convolution where the expansion is 1, too.
    A stage ends in a projection without activation, so that ``preact`` is the stage's map itself.

    Args:
        num_classes: Number of logits.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
    """

    def __init__(self, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        planes = 16
        self.conv1 = Conv2dNormActivation(in_chans, planes, 3, stride=2)
        self.blocks = nn.Sequential()
        for expansion, width, depth, stride in [
            (1, 8, 1, 1),
            (6, 12, 2, 1),
            (6, 16, 3, 2),
            (6, 32, 4, 2),
            (6, 48, 3, 1),
            (6, 80, 3, 2),
            (6, 160, 1, 1),
        ]:
            others = (InvertedResidual(width, width, 1, expansion) for _ in range(depth - 1))
            self.blocks.append(nn.Sequential(InvertedResidual(planes, width, stride, expansion), *others))
            planes = width
        self.conv2 = Conv2dNormActivation(planes, 1280, 1)
        self.add_head(1280, num_classes, drop_rate)
        self.initialize(linear_std=0.01)
        self.feature_info = [
            {"num_chs": width, "reduction": reduction, "module": f"blocks.{i}", "preact": f"blocks.{i}"}
            for i, width, reduction in [(1, 12, 2), (2, 16, 4), (4, 48, 8), (6, 160, 16)]
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, 1280, H / 16, W / 16)."""
        return self.conv2(self.blocks(self.conv1(image)))


@register
def mobilenetv2(**kwargs: Any) -> CIFARMobileNetV2:
    """MobileNetV2 of half width for CIFAR, RepDistiller's ``mobile_half``."""
    return CIFARMobileNetV2(**kwargs)
