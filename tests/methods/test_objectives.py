import math

import pytest
import torch
from torch import nn
from toy import ToyImages, fit, toy_network, weights

from lit_kd import objectives
from lit_kd.datamodules.loading import InMemoryImages
from lit_kd.losses import kd_loss
from lit_kd.methods import MCMIDistill
from lit_kd.models import vision_model
from lit_kd.objectives import CRD, DKD, KD, VID, FitNet, Objective, ReviewKD

PUBLISHED = {
    "KD": (0.9, 0.1),
    "DKD": (1.0, 1.0),
    "DIST": (1.0, 1.0),
    "LogitStandardization": (9.0, 0.1),
    "FitNet": (100.0, 1.0),
    "AttentionTransfer": (1000.0, 1.0),
    "SimilarityPreserving": (3000.0, 1.0),
    "VID": (1.0, 1.0),
    "CorrelationCongruence": (0.02, 1.0),
    "RKD": (1.0, 1.0),
    "PKT": (30000.0, 1.0),
    "CRD": (0.8, 1.0),
    "ReviewKD": (1.0, 1.0),
}


def make(name: str) -> Objective:
    return getattr(objectives, name)(**({"num_negatives": 16} if name == "CRD" else {}))


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_weights(name: str) -> None:
    objective = make(name)
    assert (objective.weight, objective.ce_weight, objective.kd_weight) == (*PUBLISHED[name], 0.0)


class LargerImages(ToyImages):
    image_size = 32

    def load(self, split: str) -> InMemoryImages:
        images = super().load(split)
        images.pixels = images.pixels.repeat(1, 1, 4, 4)
        return images


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("teacher", "student"), [("wrn_16_2", "resnet8"), ("vgg8", "mobilenetv2")])
def test_every_objective_trains_pairs_of_one_and_of_two_styles(name: str, teacher: str, student: str) -> None:
    torch.manual_seed(0)
    module = MCMIDistill(vision_model(student, 3), vision_model(teacher, 3), 3, make(name))
    before = weights(module.student)
    learned = {key: value.clone() for key, value in module.objective.named_parameters()}
    trainer = fit(module, LargerImages(batch_size=4), max_steps=1)
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert not torch.equal(weights(module.student), before)
    for key, value in module.objective.named_parameters():
        assert not torch.equal(value, learned[key]), f"{key} did not learn"


def test_terms_are_weighted_and_sum_to_the_loss() -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    label = torch.tensor([0, 1, 2, 0])
    step = objectives.DistillStep(student, teacher, label, None, [], [], epoch=4)
    terms = KD(weight=0.9, ce_weight=0.1)(step)
    torch.testing.assert_close(terms["kd"], 0.9 * kd_loss(student, teacher, 4.0))
    torch.testing.assert_close(terms["ce"], 0.1 * nn.functional.cross_entropy(student, label))
    full = DKD(warmup_epochs=0)(step)["dkd"]
    torch.testing.assert_close(DKD(warmup_epochs=20)(step)["dkd"], full * 5 / 20)
    both = FitNet(kd_weight=0.5)
    both.build([torch.zeros(1, 2, 4, 4)], [torch.zeros(1, 3, 4, 4)])
    step.student_features, step.teacher_features = [torch.randn(4, 2, 4, 4)], [torch.randn(4, 3, 4, 4)]
    torch.testing.assert_close(both(step)["hinton"], 0.5 * kd_loss(student, teacher, 4.0))


def test_crd_draws_only_from_the_few_shot_subset() -> None:
    objective = CRD(num_negatives=8, student_layers=["5:input"], teacher_layers=["5:input"])
    data = ToyImages(batch_size=6, train_fraction=0.2, samples_per_epoch=30)
    fit(MCMIDistill(toy_network(), toy_network(), 3, objective, image_shape=(3, 8, 8)), data, max_epochs=2)
    assert objective.contrast.memory.bank_student.shape == (12, 128)


@pytest.mark.parametrize(
    ("make_module", "sentence"),
    [
        (
            lambda: MCMIDistill(
                vision_model("resnet8", 3), vision_model("resnet8", 3), 3, FitNet(student_layers=["backbone.layer9"])
            ),
            "no sub-module 'backbone.layer9'; nearest: backbone.layer",
        ),
        (
            lambda: MCMIDistill(
                vision_model("resnet8", 3),
                vision_model("resnet8", 3),
                3,
                FitNet(student_layers=["backbone.layer3"], teacher_layers=["backbone.layer1"]),
            ),
            "No hint regressor leads from a 8x8 map of the student to 32x32",
        ),
        (
            lambda: MCMIDistill(toy_network(), toy_network(), 3, ReviewKD(), image_shape=(3, 8, 8)),
            "name them in student_layers",
        ),
        (
            lambda: MCMIDistill(vision_model("resnet8", 3), vision_model("vgg8", 3), 3, VID()),
            "reads 3 features of the student and 4 of the teacher",
        ),
    ],
)
def test_bad_input_is_one_sentence_at_construction(make_module: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_module()  # type: ignore[operator]


def test_dkd_with_two_classes_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="dkd_loss needs at least 3 classes, got 2"):
        MCMIDistill(toy_network(num_classes=2), toy_network(num_classes=2), 2, DKD(), image_shape=(3, 8, 8))
