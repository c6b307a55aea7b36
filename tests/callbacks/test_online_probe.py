"""The linear classifier that is trained beside a method: steps by hand, accumulation, missing labels, checkpoints."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from probe_toy import DATA, NoLabels, classifier, probe, standing_still
from torch import Tensor, nn
from toy import ToyImages, fit, quiet_trainer, toy_network

from lit_kd.callbacks import FewShotEpisodes, KNNProbe, OnlineLinearProbe
from lit_kd.callbacks.online_probe import StandardizedLinear
from lit_kd.datamodules import DigitsDataModule
from lit_kd.methods import Classifier, MCMIDistill
from lit_kd.models import vision_model
from lit_kd.models.embedding import PooledFeatures


class Snap(Callback):
    """The head after each batch."""

    def __init__(self, watched: OnlineLinearProbe) -> None:
        self.watched = watched
        self.heads: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        assert self.watched.head is not None
        self.heads.append({key: value.clone() for key, value in self.watched.head.state_dict().items()})


def test_first_step_by_hand() -> None:
    data, module = ToyImages(**DATA, augment=False), classifier(optimizer=standing_still)
    online = probe(optimizer=partial(torch.optim.SGD, lr=0.5))
    snap = Snap(online)
    trainer = fit(module, data, callbacks=[online, snap], max_steps=1)
    batch = next(iter(data.train_dataloader()))
    features = PooledFeatures(module.network, "2").evaluate(batch["image"] / 255).double()
    mean, variance = features.mean(0), features.var(0, correction=0)
    scaled = (features - mean) / (4 * (variance + 1e-5 * variance.mean())).sqrt()
    onehot = F.one_hot(batch["label"], 3).double()
    head = snap.heads[0]
    torch.testing.assert_close(head["mean"].double(), mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(head["variance"].double(), variance, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(head["bias"].double(), 0.5 * (onehot - 1 / 3).mean(0), rtol=0, atol=1e-6)
    expected = 0.5 * (onehot - 1 / 3).T @ scaled / 10
    torch.testing.assert_close(head["weight"].double(), expected, rtol=1e-3, atol=1e-5)
    assert float(trainer.callback_metrics["train/probe_network_loss"]) == pytest.approx(math.log(3))


def test_features_far_from_zero_and_of_any_unit_are_standardized() -> None:
    torch.manual_seed(0)
    features = torch.randn(200, 8)
    logits = []
    for scale, offset in ((1.0, 0.0), (1e-4, 0.0), (1e4, 1e5), (1.0, 100.0)):
        head = StandardizedLinear(3, 8)
        nn.init.eye_(head.weight)
        for batch in (features * scale + offset).split(50):
            head.update(head.moments(batch))
        logits.append(head(features * scale + offset))
        assert head.variance.div(scale**2).sub(1).abs().max() < 0.3
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=1e-2)
    constant = StandardizedLinear(3, 8)
    constant.update(constant.moments(torch.zeros(5, 8)))
    assert constant(torch.zeros(5, 8)).isfinite().all()


def test_two_halves_accumulated_equal_one_batch() -> None:
    heads = []
    for batch_size, accumulate in ((10, 1), (5, 2)):
        data = ToyImages(batch_size=batch_size, samples_per_epoch=40, val_fraction=0.2)
        online = probe()
        fit(classifier(optimizer=standing_still), data, callbacks=[online], accumulate_grad_batches=accumulate)
        assert online.head is not None and online.head.updates == 4
        heads.append(dict(online.head.state_dict()))
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-4, atol=1e-5)


class SomeLabels(ToyImages):
    """Every second training sample without its label; the module's loss does not look at labels."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        hidden = batch["index"] % 2 == 1 if "visit" in batch else torch.zeros_like(batch["label"]).bool()
        return {**batch, "label": batch["label"].where(~hidden, -1)}


def test_samples_without_a_label_are_as_if_absent() -> None:
    heads = []
    for data_class, keep in ((SomeLabels, False), (ToyImages, True)):
        online = probe()
        module = NoLabels(toy_network(), 3, optimizer=standing_still)
        torch.manual_seed(0)
        module.network[0].reset_parameters()  # type: ignore[index, operator]
        if keep:  # the same batches, the samples with odd index taken out

            class Even(OnlineLinearProbe):
                def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
                    even = batch["index"] % 2 == 0
                    batch = {key: value[even] for key, value in batch.items()}
                    super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

            online = Even("network", "2")
        fit(module, data_class(**DATA), callbacks=[online])
        assert online.head is not None
        heads.append(dict(online.head.state_dict()))
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-5, atol=1e-6)


def test_validation_and_test_do_not_train_and_an_untrained_head_has_no_number() -> None:
    online, module = probe(), classifier()
    trainer = quiet_trainer(callbacks=[online])
    assert "val/probe_network_acc" not in trainer.validate(classifier(), ToyImages(**DATA), verbose=False)[0]
    fit(module, ToyImages(**DATA), callbacks=[online], num_sanity_val_steps=2)
    before = {key: value.clone() for key, value in online.head.state_dict().items()}  # type: ignore[union-attr]
    for evaluate, name in ((trainer.validate, "val"), (trainer.test, "test")):
        assert f"{name}/probe_network_acc" in evaluate(module, ToyImages(**DATA), verbose=False)[0]
    torch.testing.assert_close(dict(online.head.state_dict()), before, rtol=0, atol=0)  # type: ignore[union-attr]


def test_the_number_of_a_checkpoint_and_two_networks(tmp_path: Path) -> None:
    def module() -> MCMIDistill:
        torch.manual_seed(0)
        return MCMIDistill(toy_network(), toy_network(6), 3, image_shape=(3, 8, 8))

    def probes() -> list[Callback]:
        return [OnlineLinearProbe("student", "2"), OnlineLinearProbe("teacher", "2")]

    trained = module()
    trainer = fit(trained, ToyImages(**DATA), callbacks=probes(), max_epochs=3)
    names = {"probe_student_acc", "probe_teacher_acc"}
    assert {f"val/{name}" for name in names} <= trainer.callback_metrics.keys()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (straight,) = trainer.test(trained, ToyImages(**DATA), verbose=False)
    fresh = quiet_trainer(callbacks=probes())
    (loaded,) = fresh.test(module(), ToyImages(**DATA), ckpt_path=str(tmp_path / "a.ckpt"), verbose=False)
    assert loaded == straight and {f"test/{name}" for name in names} <= loaded.keys()
    assert not [key for key in torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"] if "probe" in key]
    with pytest.raises(ValueError, match=r"probe of 'student' is of size \(3, 4\), but the module needs \(3, 5\)"):
        quiet_trainer(callbacks=probes()).fit(
            MCMIDistill(toy_network(5), toy_network(6), 3, image_shape=(3, 8, 8)),
            datamodule=ToyImages(**DATA),
            ckpt_path=without_weights(tmp_path / "a.ckpt"),
        )


def without_weights(path: Path) -> str:
    """A checkpoint whose callbacks meet a module of another size."""
    content = torch.load(path, weights_only=True)
    torch.manual_seed(0)
    other = MCMIDistill(toy_network(5), toy_network(6), 3, image_shape=(3, 8, 8))
    content |= {"state_dict": other.state_dict(), "optimizer_states": [], "lr_schedulers": []}
    other_optimizer = torch.optim.SGD(other.network.parameters(), lr=0.05, momentum=0.9)
    content["optimizer_states"] = [other_optimizer.state_dict()]
    content["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] = 0
    torch.save(content, path.with_name("other.ckpt"))
    return str(path.with_name("other.ckpt"))


@pytest.mark.slow
def test_a_probe_reads_digits_from_random_features() -> None:
    """A random network that stands still: linear classes of its features beat guessing (0.1) by far."""
    torch.manual_seed(0)
    network = vision_model("resnet8", 10)
    for norm in network.modules():
        norm.track_running_stats = False
    module = Classifier(network, 10, optimizer=standing_still)
    callbacks = [OnlineLinearProbe("network"), KNNProbe("network"), FewShotEpisodes("network", episodes=50)]
    trainer = quiet_trainer(max_epochs=4, callbacks=callbacks)
    trainer.fit(module, DigitsDataModule(batch_size=64, val_fraction=0.2))
    assert trainer.callback_metrics["val/probe_network_acc"] > 0.65
    assert trainer.callback_metrics["val/knn20_t0.07_network_acc"] > 0.7
    (tested,) = trainer.test(module, DigitsDataModule(val_fraction=0.2), verbose=False)
    assert tested["test/probe_network_acc"] > 0.65
    one, five = (tested[f"test/fewshot_5way_{shots}shot_network_acc"] for shots in (1, 5))
    assert 0.3 < one < five and 0 < tested["test/fewshot_5way_1shot_network_ci95"] < 0.05
