"""The project's own network."""

from torch import Tensor, nn


class Net(nn.Module):
    """Three convolutions and a classifier; ``num_classes=0``: features (B, 4 * width) instead of logits."""

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = block(3, width, stride=1)
        self.middle = block(width, 2 * width, stride=2)
        self.top = block(2 * width, 4 * width, stride=2)
        self.head = nn.Linear(4 * width, num_classes) if num_classes else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images (B, 3, H, W) in [0, 1]."""
        return self.head(self.top(self.middle(self.stem(image))).mean((2, 3)))


def block(channels: int, width: int, stride: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
