"""Wide ResNets: Zagoruyko and Komodakis, "Wide Residual Networks", arXiv 1605.07146."""

from typing import Any

from torch import Tensor, nn

from lit_kd.models.cifar.network import CIFARNetwork, conv3x3, register


class PreactivationBlock(nn.Module):
    """Normalise, rectify, convolve 3x3, twice, and a shortcut; the sum is not rectified."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.act1 = nn.ReLU()
        self.conv1 = conv3x3(in_planes, planes, stride=stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.act2 = nn.ReLU()
        self.conv2 = conv3x3(planes, planes)
        self.shortcut = nn.Conv2d(in_planes, planes, 1, stride, bias=False) if in_planes != planes else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_planes, H, W) to (B, planes, H / stride, W / stride)."""
        out = self.act1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return shortcut + self.conv2(self.act2(self.bn2(self.conv1(out))))


class CIFARWideResNet(CIFARNetwork):
    """Wide ResNet of 3 stages of (depth - 4) / 6 blocks, without dropout inside the blocks.

    A stage's map is the sum of its last block, which no activation follows. Its ``preact`` is what the next
    activation is given: the map after the batch norm of the next stage (RepDistiller, mdistiller).

    Args:
        depth: Number of weighted layers, 6n + 4.
        widen_factor: Width of the stages in units of 16, 32 and 64 channels.
        num_classes: Number of logits.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.

    Raises:
        ValueError: If ``depth`` is not 6n + 4.
    """

    def __init__(
        self, depth: int, widen_factor: int, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth={depth} must be 6n + 4 (10, 16, 22, ...).")
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]

        def stage(in_planes: int, planes: int, stride: int) -> nn.Sequential:
            others = (PreactivationBlock(planes, planes, stride=1) for _ in range((depth - 4) // 6 - 1))
            return nn.Sequential(PreactivationBlock(in_planes, planes, stride), *others)

        self.conv1 = conv3x3(in_chans, 16)
        self.block1 = stage(16, widths[0], stride=1)
        self.block2 = stage(widths[0], widths[1], stride=2)
        self.block3 = stage(widths[1], widths[2], stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.act1 = nn.ReLU()
        self.add_head(widths[2], num_classes, drop_rate)
        self.initialize()
        self.feature_info = [
            {"num_chs": widths[0], "reduction": 1, "module": "block1", "preact": "block2.0.act1:input"},
            {"num_chs": widths[1], "reduction": 2, "module": "block2", "preact": "block3.0.act1:input"},
            {"num_chs": widths[2], "reduction": 4, "module": "block3", "preact": "act1:input"},
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, 64 * widen_factor, H / 4, W / 4)."""
        x = self.block3(self.block2(self.block1(self.conv1(image))))
        return self.act1(self.bn1(x))


@register
def wrn_16_2(**kwargs: Any) -> CIFARWideResNet:
    """WRN-16-2: two blocks a stage, 32, 64 and 128 channels."""
    return CIFARWideResNet(16, 2, **kwargs)


@register
def wrn_40_1(**kwargs: Any) -> CIFARWideResNet:
    """WRN-40-1: six blocks a stage, 16, 32 and 64 channels."""
    return CIFARWideResNet(40, 1, **kwargs)


@register
def wrn_40_2(**kwargs: Any) -> CIFARWideResNet:
    """WRN-40-2: six blocks a stage, 32, 64 and 128 channels."""
    return CIFARWideResNet(40, 2, **kwargs)
