import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset
from toy import ToyImages, fit, quiet_trainer, toy_network, weights

from lit_kd.datamodules.batch import Batch
from lit_kd.losses import class_centroids, conditional_mutual_information
from lit_kd.methods import Classifier, Distill, MCMIDistill, MCMITeacher
from lit_kd.methods.mcmi import ClassStatistics
from lit_kd.models import vision_model
from lit_kd.objectives import CRD, KD

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(50, 4, generator=GENERATOR)
LABELS = torch.arange(50) % 4


def test_statistics_equal_the_losses_whatever_the_batches() -> None:
    statistics = ClassStatistics(4)
    for rows in torch.arange(50).split(7):
        statistics.update(LOGITS[rows], LABELS[rows])
    numbers = statistics.compute()
    logits = LOGITS.double()
    torch.testing.assert_close(numbers["centroids"], class_centroids(logits, LABELS, 4), rtol=1e-9, atol=0)
    torch.testing.assert_close(numbers["cmi"], conditional_mutual_information(logits, LABELS), rtol=1e-9, atol=0)
    torch.testing.assert_close(numbers["log_likelihood"], -F.cross_entropy(logits, LABELS), rtol=1e-9, atol=0)


def test_statistics_of_a_missing_class_are_an_error_not_nan() -> None:
    statistics = ClassStatistics(5)
    statistics.update(F.pad(LOGITS, (0, 1)), LABELS)
    with pytest.raises(ValueError, match=r"Classes \[4\] have no training sample"):
        statistics.compute()


def trained_teacher(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = toy_network(8)
    fit(Classifier(network, 3, optimizer=lambda p: SGD(p, lr=0.3, momentum=0.9)), max_epochs=6)
    return network


def sgd(parameters: object) -> SGD:
    return SGD(parameters, lr=0.1, momentum=0.9)  # type: ignore[arg-type]


def numbers_after(weight: float, **settings: object) -> dict[str, float]:
    module = MCMITeacher(trained_teacher(), 3, weight=weight, optimizer=sgd, **settings)  # type: ignore[arg-type]
    trainer = fit(module, max_epochs=5)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("centroids", ["frozen", "epoch"])
def test_a_positive_weight_raises_the_true_cmi_of_the_training_set(centroids: str) -> None:
    plain, tuned = numbers_after(0.0), numbers_after(0.3, centroids=centroids)
    assert tuned["train_set/cmi"] > 1.2 * plain["train_set/cmi"]
    assert tuned["train_set/log_likelihood"] < plain["train_set/log_likelihood"]
    assert tuned["train_set/surrogate"] >= tuned["train_set/cmi"] - 1e-6  # compensation identity


def test_weight_zero_is_cross_entropy_to_the_bit() -> None:
    results = []
    for make in (lambda n: MCMITeacher(n, 3, weight=0.0, optimizer=sgd), lambda n: Classifier(n, 3, optimizer=sgd)):
        network = trained_teacher()
        module = make(network)
        module.default_scheduler = MCMITeacher.default_scheduler.__get__(module)  # the two recipes differ in schedule
        module.make_scheduler = module.default_scheduler
        fit(module, max_epochs=2)
        results.append(weights(network))
    assert torch.equal(*results)


def test_the_frozen_table_is_that_of_the_network_as_it_came() -> None:
    network = trained_teacher()
    data = ToyImages(batch_size=10)
    data.setup("fit")
    with torch.no_grad():
        images = data.sets["train"].pixels / 255  # type: ignore[attr-defined]
        expected = class_centroids(network.eval()(images), data.sets["train"].labels, 3)
    module = MCMITeacher(network, 3, optimizer=sgd)
    fit(module, data, max_epochs=2)
    torch.testing.assert_close(module.centroid_table, expected, rtol=1e-6, atol=1e-7)
    assert "centroid_table" in module.state_dict() and not module.centroid_table.requires_grad
    moving = MCMITeacher(trained_teacher(), 3, centroids="epoch", optimizer=sgd)
    fit(moving, data, max_epochs=2)
    assert not torch.allclose(moving.centroid_table, expected, atol=1e-5)


def test_the_centroid_pass_leaves_batch_statistics_and_mode_alone() -> None:
    network = vision_model("resnet8", 3)
    seen = []

    class Watch(MCMITeacher):
        def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
            before = network.backbone.bn1.running_mean.clone()
            super().on_train_batch_start(batch, batch_idx)
            seen.append(torch.equal(network.backbone.bn1.running_mean, before) and network.training)

    fit(Watch(network, 3), limit_train_batches=1)
    assert seen == [True]


class PairData(LightningDataModule):
    """The data module of somebody else: (image, label) pairs."""

    def train_dataloader(self) -> DataLoader:
        images = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(24) % 3), batch_size=8)

    test_dataloader = train_dataloader


def test_other_peoples_pairs_work_and_what_needs_an_index_says_so() -> None:
    with pytest.warns(UserWarning, match="no train_eval_dataloader"):
        fit_pairs(MCMITeacher(toy_network(), 3, optimizer=sgd))
    fit_pairs(Classifier(toy_network(), 3, optimizer=sgd))
    fit_pairs(MCMIDistill(toy_network(), toy_network(8), 3, image_shape=(3, 8, 8), optimizer=sgd))
    crd = CRD(num_negatives=4, student_layers=["5:input"], teacher_layers=["5:input"])
    with pytest.raises(ValueError, match=r"train_samples\(\) -> \(index, label\)"):
        fit_pairs(MCMIDistill(toy_network(), toy_network(8), 3, crd, image_shape=(3, 8, 8)))


def fit_pairs(module: Distill) -> None:
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, datamodule=PairData())
    trainer.test(module, datamodule=PairData(), verbose=False)


def test_images_normalised_twice_are_refused() -> None:
    class Normalised(PairData):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 3), batch_size=8)

    with pytest.raises(ValueError, match=r"Images span .* normalises pixels in \[0, 1\] itself"):
        quiet_trainer(max_epochs=1).fit(Classifier(vision_model("resnet8", 3), 3), datamodule=Normalised())
    plain = vision_model("resnet8", 3, normalize=False)
    quiet_trainer(max_epochs=1).fit(Classifier(plain, 3), datamodule=Normalised())


def test_a_student_learns_from_the_soft_labels_alone() -> None:
    teacher = trained_teacher()
    torch.manual_seed(5)
    student = toy_network(8)
    objective = KD(weight=1.0, ce_weight=0.0, temperature=2.0)
    module = MCMIDistill(student, teacher, 3, objective, image_shape=(3, 8, 8), optimizer=sgd)
    trainer = fit(module, ToyImages(batch_size=10, seed=1), max_epochs=12)
    result = trainer.test(module, ToyImages(), verbose=False)[0]
    assert result["test/acc"] > 0.9
    assert trainer.callback_metrics["test/nll"] < 0.8


def test_omitted_classes_are_reported_one_by_one() -> None:
    module = MCMIDistill(toy_network(), trained_teacher(), 3, image_shape=(3, 8, 8), optimizer=sgd)
    data = ToyImages(batch_size=10, omit_classes=["green"])
    trainer = fit(module, data, max_epochs=2)
    result = trainer.test(module, data, verbose=False)[0]
    confusion = module.test_confusion.compute()
    assert confusion.sum() == 31
    assert result["test/acc_omitted_green"] == pytest.approx(float(confusion[1, 1] / confusion[1].sum()))
    assert result["test/acc_omitted"] == result["test/acc_omitted_green"]
    assert result["test/acc"] == pytest.approx(float(confusion.diag().sum() / 31))
    with pytest.raises(ValueError, match=r"Classes \[1\] have no training sample"):
        fit(MCMITeacher(toy_network(), 3), ToyImages(omit_classes=[1]))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: MCMIDistill(toy_network(), toy_network(num_classes=5), 3, image_shape=(3, 8, 8)),
            r"teacher gives logits .*5\)",
        ),
        (lambda: MCMIDistill(vision_model("resnet8", 3), vision_model("resnet8", 100), 3), "teacher has 100 classes"),
        (lambda: Classifier(vision_model("resnet8", 10), 3), "network has 10 classes but num_classes=3"),
        (lambda: Distill.load_from_checkpoint("absent.ckpt"), "absent.ckpt"),
    ],
)
def test_bad_arguments_are_one_sentence_before_training(make: object, sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        make()  # type: ignore[operator]


def test_a_published_schedule_needs_a_number_of_epochs() -> None:
    with pytest.raises(ValueError, match="max_epochs=-1 .*set max_epochs"):
        fit(Classifier(toy_network(), 3), max_epochs=-1, max_steps=3)


def test_recipes() -> None:
    rates = []
    module = Classifier(toy_network(), 3)

    class Watch(MCMITeacher):
        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    fit(Watch(toy_network(), 3), max_epochs=20)
    expected = [0.05 * (1 + torch.cos(torch.tensor(torch.pi * epoch / 20)).item()) / 2 for epoch in range(20)]
    assert rates == pytest.approx(expected, rel=1e-5)
    assert rates[-1] == pytest.approx(3.08e-4, rel=1e-2)  # mcmi recipe: the 20th epoch
    module.trainer = quiet_trainer(max_epochs=240)
    scheduler = module.default_scheduler(module.default_optimizer(module.parameters()))
    assert sorted(scheduler.milestones) == [150, 180, 210]  # type: ignore[attr-defined]


def test_temperature_divides_the_logits_in_training_only() -> None:
    network = toy_network()
    module = Classifier(network, 3, temperature=4.0)
    batch = {"image": torch.rand(6, 3, 8, 8), "label": torch.arange(6) % 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = module.training_step(batch, 0)
    torch.testing.assert_close(loss, F.cross_entropy(network(batch["image"]) / 4, batch["label"]))
    assert torch.equal(module(batch["image"]), network(batch["image"]))
