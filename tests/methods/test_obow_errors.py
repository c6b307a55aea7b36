"""What OBoW refuses, and in which words."""

from typing import Any

import obow_toy
import pytest
import torch
from obow_toy import CropImages, fit, module, moving, network, state
from torch import Tensor, nn

from lit_kd.methods.obow import views
from lit_kd.models import vision_model


class Tokens(nn.Module):
    """A network without places: (B, N, C) like a transformer's."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(3, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.block(image.flatten(2).transpose(1, 2))


class Swin(nn.Module):
    """Maps with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Linear(3, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.stage(image.permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("student", "settings", "message"),
    [
        (network(), {"levels": ["1", "layer4"]}, "Sequential has no sub-module 'layer4'; nearest"),
        (network(), {"levels": []}, "levels must name at least one map"),
        (network(), {"levels": 2}, "levels=2, but Sequential names 0 stages in its feature_info"),
        (vision_model("resnet8", 0), {"levels": 4}, "levels=4, but VisionModel names 3 stages"),
        (vision_model("resnet8", 0), {"levels": 0}, "levels=0, but VisionModel names 3 stages"),
        (
            vision_model("resnet8", 0),
            {"levels": 2},
            r"Level 'backbone.layer3' has, of 16x16 images, a 4x4 map, but border=1 and pool_kernel=3 need .* 5x5",
        ),
        (vision_model("resnet18", 0), {"image_shape": (3, 64, 64), "levels": 2}, "'backbone.layer3' .* a 4x4 map"),
        (Tokens(), {"levels": ["block"]}, r"Level 'block' of Tokens gives \(1, 256, 4\), but visual words need maps"),
        (Swin(), {"levels": ["stage"]}, r"Level 'stage' of Swin gives \(1, 16, 16, 5\), channels last"),
        (network(), {"image_shape": (1, 16, 16)}, "have 1 channels, but OBoW's views change colours: it needs 3"),
        (network(), {"inverse_delta": [15.0]}, r"inverse_delta=\[15.0\] has 1 values for the 2 levels"),
        (network(), {"border": [1, 1, 1]}, r"border=\[1, 1, 1\] has 3 values for the 2 levels"),
    ],
)
def test_bad_arguments_say_so_at_once(student: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(student, **settings)


def test_more_images_than_words_is_an_error_before_training() -> None:
    with pytest.raises(ValueError, match="num_words=32 is smaller than the 64 images of a step"):
        fit(module(), CropImages(batch_size=16), accumulate_grad_batches=4, limit_train_batches=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: (batch["image"], batch["label"]), "OBoW needs batches that are dicts .* argument views"),
        (lambda batch: {"image": batch["image"]}, "OBoW needs batches that are dicts"),
        (
            lambda batch: {**batch, "crops": [batch["image"][:5]]},
            "5 crops are no whole number for each of the 8 images",
        ),
        (lambda batch: {**batch, "image": batch["image"][:, :1]}, "have 1 channels"),
        (lambda batch: {**batch, "image": batch["image"][:, :, 1:]}, r"view is \(3, 15, 16\) but image_shape=\(3, 16"),
    ],
)
def test_bad_batches_say_so(change: Any, message: str) -> None:
    class Data(CropImages):
        def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Any:
            return change(super().on_after_batch_transfer(batch, dataloader_idx))

    with pytest.raises(ValueError, match=message):
        fit(module(), Data(batch_size=8))


def test_classifier_behind_the_levels_is_frozen_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"2 parameters of the student lie behind .*linear.weight.*num_classes=0"):
        obow = module(vision_model("resnet8", num_classes=10), levels=2, border=0)
    assert not any(p.requires_grad for name, p in obow.student.named_parameters() if "linear" in name)


def test_views_of_a_batch() -> None:
    image, crops = views({"image": torch.zeros(2, 3, 4, 4), "crops": (torch.zeros(4, 3, 2, 2),)})
    assert len(image) == 2 and len(crops[0]) == 4
    assert obow_toy.GROUPS[0][0] == 2


def test_moving_keys() -> None:
    """The helper above knows everything that only an optimizer step may move."""
    assert {key.split(".")[0] for key in moving(state(module()))} == {"teacher", "vocabularies"}
