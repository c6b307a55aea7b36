"""The CNN of defensive distillation: Papernot et al., arXiv 1511.04508 (layers quoted from memory)."""

from typing import Any

from torch import Tensor, nn

from lit_kd.models.cifar.network import CIFARNetwork, register


class PapernotCNN(CIFARNetwork):
    """Two blocks of two 3x3 convolutions and 2x2 max pooling, then two hidden linear layers; ReLU, no batch norm.

    Convolutions are not padded (as in Carlini and Wagner's copy), so that 32x32 pixels end as 5x5.

    Args:
        num_classes: Number of logits.
        in_chans: Channels of the image.
        drop_rate: Dropout between the hidden layers and before the classifier; the paper has 0.5.
        width: Channels of the first block; the second has twice, the hidden layers four times as many. The paper's
            CIFAR-10 network has 64.
        image_size: Edge of the image in pixels, which the first linear layer needs to know.
    """

    def __init__(
        self,
        num_classes: int = 100,
        in_chans: int = 3,
        drop_rate: float = 0.5,
        width: int = 64,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        edge = ((image_size - 4) // 2 - 4) // 2
        if edge < 1:
            raise ValueError(f"image_size={image_size} leaves nothing after two blocks: it must be at least 16.")

        def block(in_planes: int, planes: int) -> nn.Sequential:
            convolutions = [nn.Conv2d(in_planes, planes, 3), nn.ReLU(), nn.Conv2d(planes, planes, 3), nn.ReLU()]
            return nn.Sequential(*convolutions, nn.MaxPool2d(2))

        self.block1 = block(in_chans, width)
        self.block2 = block(width, 2 * width)
        hidden = 4 * width
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Linear(2 * width * edge**2, hidden),
            nn.ReLU(),
            nn.Dropout(drop_rate),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
        )
        self.num_features = self.head_hidden_size = hidden
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes)
        self.initialize()
        self.feature_info = [
            {"num_chs": planes, "reduction": reduction, "module": f"block{i}", "preact": f"block{i}.3:input"}
            for i, (planes, reduction) in enumerate([(width, 2), (2 * width, 4)], start=1)
        ]

    def forward_features(self, image: Tensor) -> Tensor:
        """Map (B, in_chans, image_size, image_size) to (B, 2 * width, edge, edge)."""
        return self.block2(self.block1(image))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Hidden layers (B, 4 * width) and, unless ``pre_logits``, logits (B, num_classes)."""
        hidden = self.head_drop(self.hidden(features))
        return hidden if pre_logits else self.linear(hidden)


@register
def papernot_cnn(**kwargs: Any) -> PapernotCNN:
    """The CIFAR-10 network of defensive distillation: 64, 64, 128, 128, 256, 256."""
    return PapernotCNN(**kwargs)
