"""CIFAR VGGs of RepDistiller: Simonyan and Zisserman, arXiv 1409.1556, batch norm, one linear layer."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from lit_kd.models.cifar.network import CIFARNetwork, register

# The ReLU that ends a block is read before and after: not in place.
conv3x3_bn_relu = partial(Conv2dNormActivation, kernel_size=3, bias=True, inplace=False)


class CIFARVGG(CIFARNetwork):
    """VGG of five blocks of 64, 128, 256, 512 and 512 channels, with 2x2 max pooling between the blocks.

    Between the last two blocks only images of 64 pixels and more are pooled (RepDistiller): the ``reduction``
    of the last block is 16 for them, not 8.

    Args:
        convolutions: Number of 3x3 convolutions a block.
        num_classes: Number of logits.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier.
    """

    def __init__(self, convolutions: int, num_classes: int = 100, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()

        def block(in_planes: int, planes: int) -> nn.Sequential:
            others = (conv3x3_bn_relu(planes, planes) for _ in range(convolutions - 1))
            return nn.Sequential(conv3x3_bn_relu(in_planes, planes), *others)

        self.block0 = block(in_chans, 64)
        self.block1 = block(64, 128)
        self.block2 = block(128, 256)
        self.block3 = block(256, 512)
        self.block4 = block(512, 512)
        self.pool = nn.MaxPool2d(2)
        self.add_head(512, num_classes, drop_rate)
        self.initialize(linear_std=0.01)
        self.feature_info = [  # block0 is the stem: the published feature losses start at block1
            {
                "num_chs": planes,
                "reduction": reduction,
                "module": f"block{i}",
                "preact": f"block{i}.{convolutions - 1}.2:input",
            }
            for i, (planes, reduction) in enumerate([(128, 2), (256, 4), (512, 8), (512, 8)], start=1)
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, 512, H / 8, W / 8), or H / 16 from 64 pixels on."""
        x = self.pool(self.block0(image))
        x = self.pool(self.block1(x))
        x = self.pool(self.block2(x))
        x = self.block3(x)
        return self.block4(self.pool(x) if image.shape[-2] >= 64 else x)


@register
def vgg8(**kwargs: Any) -> CIFARVGG:
    """VGG-8: one convolution a block."""
    return CIFARVGG(1, **kwargs)


@register
def vgg13(**kwargs: Any) -> CIFARVGG:
    """VGG-13 for CIFAR: two convolutions a block (for timm's ImageNet network ask for "vgg13.tv_in1k")."""
    return CIFARVGG(2, **kwargs)
