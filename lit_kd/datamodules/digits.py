"""scikit-learn's handwritten digits: real images that need no download."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lit_kd.datamodules.base import ImageDataModule, Split
from lit_kd.datamodules.loading import InMemoryImages
from lit_kd.datamodules.subsets import take_per_class


class DigitsDataModule(ImageDataModule):
    """The 1,797 handwritten digits of scikit-learn, 8x8 grey scaled up to 32x32 RGB (bilinear).

    A fixed fifth of each class, the same for every `seed`, is the test set. Training images are padded by 4
    and cropped, not flipped. The arguments are those of `ImageDataModule`.

    Raises:
        ImportError: In `setup`, if scikit-learn is not installed.
        ValueError: As `ImageDataModule`.
    """

    num_classes = 10
    image_size = 32
    mean = (0.3054, 0.3054, 0.3054)
    std = (0.3237, 0.3237, 0.3237)
    flip = False

    def load(self, split: Split) -> InMemoryImages:
        """Scale the images up and take one side of the fixed split."""
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("DigitsDataModule needs scikit-learn: pip install 'lit-kd[digits]'.") from error
        digits = load_digits()
        grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
        grey = F.interpolate(grey, size=(32, 32), mode="bilinear").round().to(torch.uint8)
        labels = torch.from_numpy(digits.target).long()
        is_test = take_per_class(labels, fraction=0.2, seed=0)
        chosen = is_test if split == "test" else ~is_test
        pixels = grey[chosen].repeat(1, 3, 1, 1)
        return InMemoryImages(pixels, labels[chosen], [str(name) for name in digits.target_names])
