"""A network trained by others, on real CIFAR-10 test images: it has no robustness, and the attacks say so."""

from typing import NamedTuple

import pytest
import torch
from shared_data import DATA
from torch import Tensor, nn

from lit_kd.attacks import TorchAttack, apgd, carlini_wagner, fgsm, pgd
from lit_kd.datamodules import CIFAR10DataModule
from lit_kd.models import vision_model

WEIGHTS = DATA / "weights" / "resnet20-12fca82f.th"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"real images and weights are not in {DATA} (LITKD_DATA)"),
]


class Real(NamedTuple):
    network: nn.Module
    image: Tensor
    label: Tensor
    correct: Tensor


@pytest.fixture(scope="module")
def real() -> Real:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = vision_model("resnet20", 10, checkpoint=WEIGHTS, mean=mean, std=std).eval()
    data = CIFAR10DataModule(root=str(DATA / "cifar10"), eval_batch_size=10_000)
    data.setup("test")
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    rows = torch.arange(0, 10_000, 100)  # ten of each class: the files are sorted
    image, label = batch["image"][rows], batch["label"][rows]
    with torch.no_grad():
        return Real(network, image, label, network(image).argmax(1) == label)


def test_clean_accuracy_is_as_documented(real: Real) -> None:
    assert 0.7 < real.correct.double().mean() < 0.92  # 81.03 % of all 10,000


def test_adaptive_attacks_leave_nothing(real: Real) -> None:
    for result in (
        pgd(real.network, real.image, real.label, loss="margin"),
        apgd(real.network, real.image, real.label, loss="dlr", steps=30),
        carlini_wagner(real.network, real.image, real.label),
    ):
        assert result.success.all()


def test_minimal_distance_agrees_with_the_ball(real: Real) -> None:
    network, image, label, correct = real
    nearest = carlini_wagner(network, image[correct], label[correct]).l2
    for factor, enough in ((1.5, True), (0.5, False)):
        radius = float(factor * nearest.median())
        success = pgd(network, image[correct], label[correct], eps=radius, norm="l2", loss="margin").success
        assert (success.double().mean() > 0.5) == enough


def test_fgsm_equals_torchattacks_to_the_bit(real: Real) -> None:
    pytest.importorskip("torchattacks")
    theirs = TorchAttack("torchattacks.FGSM", {"eps": 8 / 255})(real.network, real.image, real.label)
    ours = fgsm(real.network, real.image, real.label, eps=8 / 255)
    assert torch.equal(ours.adversarial, theirs.adversarial) and ours.success.double().mean() > 0.7
