import math
from functools import partial
from pathlib import Path
from typing import Any

import obow_toy
import probe_worker
import pytest
import torch
import torch.nn.functional as F
import two_processes
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toy import ToyImages, fit, quiet_trainer, toy_network, weights

from lit_kd.callbacks import (
    CollapseMonitor,
    FewShotEpisodes,
    KNNProbe,
    OnlineLinearProbe,
    VocabularyPanel,
    few_shot_accuracy,
    weighted_knn,
)
from lit_kd.callbacks.online_probe import StandardizedLinear
from lit_kd.callbacks.vocabulary_panel import nearest_patches, spread_words
from lit_kd.callbacks.word_maps import WordMaps
from lit_kd.cli import main
from lit_kd.datamodules import DigitsDataModule
from lit_kd.methods import Classifier, MCMIDistill
from lit_kd.models import vision_model
from lit_kd.models.embedding import PooledFeatures

DATA: dict[str, Any] = {"batch_size": 10, "val_fraction": 0.2, "eval_batch_size": 7}
standing_still = partial(torch.optim.SGD, lr=0.0)


def norm_network() -> nn.Sequential:
    """With batch norm and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)
    )


def probe(**settings: Any) -> OnlineLinearProbe:
    return OnlineLinearProbe(**{"network": "network", "layer": "2", **settings})


def classifier(network: nn.Module | None = None, **settings: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(network or toy_network(), 3, **settings)


def with_words(module: Classifier, words: int = 5) -> Classifier:
    module.register_buffer("words", torch.rand(words, 4))
    return module


# Pooled features


def test_pooled_features_are_found_and_leave_the_network_as_it_is() -> None:
    network = vision_model("resnet8", 10)
    pooled, image = PooledFeatures(network), torch.rand(4, 3, 16, 16)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    network.backbone.layer1.eval()  # type: ignore[union-attr]
    features = pooled.evaluate(image)
    assert features.shape == (4, 64) and not features.requires_grad
    torch.testing.assert_close(network.backbone.linear(features), network.eval()(image))  # type: ignore[operator,union-attr]
    assert pooled(image).requires_grad
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
    network.train()
    network.backbone.layer1.eval()  # type: ignore[union-attr]
    pooled.evaluate(image)
    assert network.training and not network.backbone.layer1.training  # type: ignore[union-attr]


def test_pooled_features_of_a_layer_of_the_output_and_of_neither() -> None:
    network, image = toy_network(), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(PooledFeatures(network, "1")(image), network[:2](image).mean((2, 3)))
    torch.testing.assert_close(PooledFeatures(network)(image), network(image))
    half = PooledFeatures(toy_network().bfloat16()).evaluate(image.bfloat16())
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match=r"gives \(6,\) as the output, which is neither"):
        PooledFeatures(nn.Flatten(0))(torch.rand(2, 3))
    with pytest.raises(ValueError, match="no sub-module 'layer9'"):
        PooledFeatures(network, "layer9")


# k-NN


def brute_force(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    votes = torch.zeros(len(queries), classes, dtype=torch.float64)
    for q, query in enumerate(queries.double()):
        cosines = [
            (float(query @ f.double() / (query.norm() * f.double().norm())), int(y))
            for f, y in zip(bank, labels, strict=True)
            if y >= 0
        ]
        for cosine, y in sorted(cosines, reverse=True)[:k]:
            votes[q, y] += math.exp(cosine / temperature)
    return votes / votes.sum(1, keepdim=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (7, 1.0), (1000, 0.5)])
def test_votes_equal_brute_force_in_float64(k: int, temperature: float) -> None:
    torch.manual_seed(k)
    bank, queries = torch.randn(60, 6).double(), torch.randn(11, 6).double()
    labels = torch.tensor([0, 2, 5, -1]).repeat(15)  # classes without samples, unlabelled samples
    votes = weighted_knn(bank, labels, queries, k, temperature, num_classes=7, chunk=4)
    assert votes.dtype == torch.float64
    torch.testing.assert_close(votes, brute_force(bank, labels, queries, k, temperature, 7))
    for chunk in (1, 11, 100):
        torch.testing.assert_close(weighted_knn(bank, labels, queries, k, temperature, 7, chunk), votes)


def test_votes_of_small_temperatures_empty_banks_and_halves() -> None:
    bank, labels = torch.eye(3), torch.arange(3)
    votes = weighted_knn(bank, labels, torch.tensor([[1.0, 0.9, 0.0]]), 3, 1e-4, 3)  # exp(1 / T) would overflow
    torch.testing.assert_close(votes, torch.tensor([[1.0, 0.0, 0.0]]))
    for empty in (bank[:0], bank):
        votes = weighted_knn(empty, torch.full((len(empty),), -1), bank, 2, 0.07, 4)
        assert votes.shape == (3, 4) and votes.isnan().all()
    assert weighted_knn(bank.half(), labels, bank.half(), 1, 0.07, 3).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ({"num_classes": 2}, "num_classes=2 is too small for label 2"),
    ],
)
def test_bad_arguments_of_knn(argument: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        weighted_knn(torch.eye(3), torch.arange(3), **{"queries": torch.eye(3), "k": 1, "temperature": 1.0,
                     "num_classes": 3, **argument})  # fmt: skip
    if "chunk" not in argument and "num_classes" not in argument:
        with pytest.raises(ValueError, match=sentence):
            KNNProbe(**argument)


def test_knn_probe_logs_what_the_function_says_under_a_name_with_k_and_temperature() -> None:
    data, module = ToyImages(**DATA), classifier()
    knn = KNNProbe("network", "2", k=5, temperature=0.1)
    trainer = fit(module, data, callbacks=[knn], num_sanity_val_steps=2)
    pooled, images = PooledFeatures(module.network, "2"), data.sets["train"].pixels / 255
    labels = data.sets["train"].labels
    bank, queries = (pooled.evaluate(images[index]) for index in (data.train_index, data.val_index))
    votes = weighted_knn(bank, labels[data.train_index], queries, 5, 0.1, 3)
    expected = (votes.argmax(1) == labels[data.val_index]).float().mean()
    assert float(trainer.callback_metrics["val/knn5_t0.1_network_acc"]) == pytest.approx(float(expected))
    assert knn._bank is None  # freed
    (tested,) = quiet_trainer(callbacks=[knn]).test(module, ToyImages(**DATA), verbose=False)
    assert 0 <= tested["test/knn5_t0.1_network_acc"] <= 1


def test_knn_probe_of_every_second_epoch_and_no_sanity_check(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    knn = KNNProbe("network", "2", every_n_epochs=2)
    collect = knn.collect

    def spy(trainer: Trainer, module: LightningModule) -> Any:
        epochs.append(trainer.current_epoch)
        return collect(trainer, module)

    monkeypatch.setattr(knn, "collect", spy)
    fit(classifier(), ToyImages(**DATA), callbacks=[knn], max_epochs=5, num_sanity_val_steps=2)
    assert epochs == [1, 3]


class NoLabels(Classifier):
    """Learns without them, so they may be anything."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None: ...

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch["image"]).square().mean()


class Unlabelled(ToyImages):
    """Nobody knows a label."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**super().on_after_batch_transfer(batch, dataloader_idx), "label": torch.full_like(batch["label"], -1)}


def test_without_labels_knn_is_nan_and_the_probe_learns_nothing() -> None:
    class Zero(NoLabels):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/none", 0.0, batch_size=1)

    online = probe()
    trainer = fit(Zero(toy_network(), 3), Unlabelled(**DATA), callbacks=[KNNProbe("network", "2"), online])
    assert trainer.callback_metrics["val/knn20_t0.07_network_acc"].isnan()
    assert trainer.callback_metrics["val/probe_network_acc"].isnan()
    assert online.head is not None and not weights(online.head).any()


class Plain(LightningModule):
    """Anybody's module: (image, label) tuples, no num_classes, no data module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"net": toy_network()})

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.encoder["net"](batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def train_eval_dataloader(self) -> DataLoader:
        return tuples()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def tuples(shuffle: bool = False) -> DataLoader:
    images = ToyImages()
    images.setup("fit")
    pixels, labels = images.sets["train"].pixels / 255, images.sets["train"].labels
    return DataLoader(TensorDataset(pixels, labels), 16, shuffle=shuffle)


def test_any_lightning_module_with_tuples_and_loaders() -> None:
    settings: dict[str, Any] = {"network": "encoder.net", "layer": "2", "num_classes": 3}
    callbacks = [OnlineLinearProbe(**settings), KNNProbe(**settings), CollapseMonitor("encoder.net", "2")]
    trainer = quiet_trainer(max_epochs=2, callbacks=callbacks)
    trainer.fit(Plain(), tuples(shuffle=True), tuples())
    names = {"val/probe_encoder.net_acc", "val/knn20_t0.07_encoder.net_acc", "val/cosine_encoder.net"}
    assert names <= trainer.callback_metrics.keys()


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        (lambda: OnlineLinearProbe("student", num_classes=3), "Plain has no Module at 'student'; its children are enc"),
        (lambda: OnlineLinearProbe("encoder.net", "9", num_classes=3), "no sub-module '9'"),
        (lambda: OnlineLinearProbe("encoder.net"), "num_classes=None, and neither the module nor"),
        (lambda: OnlineLinearProbe("encoder.net", num_classes=2), "num_classes=2 of the probe is too small"),
        (
            lambda: CollapseMonitor("encoder.net", word_network="encoder.net", word_levels={"1": "words"}),
            "no Tensor or",
        ),
        (lambda: VocabularyPanel({"1": "words"}, "encoder.net"), "Plain has no Tensor or Module at 'words'"),
    ],
)
def test_bad_arguments_fail_before_the_first_step(callback: Any, sentence: str) -> None:
    module = Plain()
    before = weights(module)
    with pytest.raises(ValueError, match=sentence):
        quiet_trainer(max_epochs=1, callbacks=[callback()]).fit(module, tuples(), tuples())
    assert torch.equal(weights(module), before)


def test_knn_without_a_training_set_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Plain, "train_eval_dataloader")
    knn = KNNProbe("encoder.net", num_classes=3)
    with pytest.raises(ValueError, match=r"a method train_eval_dataloader\(\)"):
        quiet_trainer(max_epochs=1, callbacks=[knn]).fit(Plain(), tuples(), tuples())


# The module does not notice


def outcome(folder: Path, callbacks: list[Callback]) -> dict[str, Any]:
    torch.manual_seed(0)
    module = with_words(Classifier(norm_network(), 3))
    data = ToyImages(**DATA, samples_per_epoch=44)
    settings: dict[str, Any] = {"accumulate_grad_batches": 2, "val_check_interval": 2, "default_root_dir": folder}
    trainer = fit(module, data, callbacks=callbacks, max_epochs=2, **settings)
    return {
        "weights and running statistics": {key: value.clone() for key, value in module.state_dict().items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "random": torch.get_rng_state(),
        "gradients": [parameter.grad for parameter in module.parameters()],
        "modes": [part.training for part in module.modules()],
    }


def test_training_is_the_same_to_the_bit_with_and_without_probes(tmp_path: Path) -> None:
    levels = {"2": "words"}
    probes: list[Callback] = [
        probe(),
        KNNProbe("network", "2"),
        CollapseMonitor("network", "2", word_network="network", word_levels=levels),
        VocabularyPanel(levels, "network"),
    ]
    torch.testing.assert_close(outcome(tmp_path, probes), outcome(tmp_path, []), rtol=0, atol=0)


# Online probe


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


# Few shots


def test_prototypes_by_hand() -> None:
    # Directions of two classes at 0 and 90 degrees; the long vector must not pull the prototype.
    features = torch.tensor([[100.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0], [0.3, 0.9]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert few_shot_accuracy(features, labels, 2, 2, 1, 20) == (1.0, 0.0)
    # One sample of each class lies in the other's midst: it is always wrong, as support (1 shot) it misleads.
    swapped = features[[0, 1, 5, 3, 4, 2]]
    mean, half_width = few_shot_accuracy(swapped, labels, 2, 2, 1, episodes=4000, seed=1)
    # The query is the odd one with probability 1/3 in each class; an odd support tilts its prototype to 45 degrees.
    assert 0.3 < mean < 0.8 and 0 < half_width < 0.02
    again = few_shot_accuracy(swapped, labels, 2, 2, 1, episodes=4000, seed=1)
    other = few_shot_accuracy(swapped, labels, 2, 2, 1, episodes=4000, seed=2)
    assert again == (mean, half_width) and other[0] != mean and abs(other[0] - mean) < 2 * half_width


def test_prototypes_equal_a_loop_over_one_episode() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(12, 5), torch.arange(12) % 4
    labels[-4:] = -1  # unlabelled: two samples a class are left, so the episode is fixed but for roles and order
    seen = set()
    for seed in range(40):
        mean, half_width = few_shot_accuracy(features, labels, 4, 1, 1, episodes=1, seed=seed)
        assert math.isnan(half_width)
        seen.add(round(mean, 4))
    expected = set()
    for roles in range(16):
        support = torch.tensor([c + 4 * (roles >> c & 1) for c in range(4)])
        query = torch.tensor([c + 4 * (1 - (roles >> c & 1)) for c in range(4)])
        cosine = F.cosine_similarity(features[query][:, None], features[support][None], dim=2)
        expected.add(round((cosine.argmax(1) == torch.arange(4)).float().mean().item(), 4))
    assert seen <= expected


def test_few_shot_leaves_the_random_state_and_says_what_is_missing() -> None:
    features, before = torch.rand(20, 3), torch.get_rng_state()
    few_shot_accuracy(features, torch.arange(20) % 2, 2, 5, 5, 10)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="ways=3 with shots=5 and queries=5: only 2 classes have 10 samples"):
        few_shot_accuracy(torch.rand(20, 3), torch.arange(20) % 2, 3, 5, 5, 10)


# Collapse and vocabulary


def test_monitor_sees_collapse_and_health() -> None:
    numbers = {}
    for name, weight in (("collapsed", 0.0), ("random", 1.0)):
        module = with_words(classifier(optimizer=standing_still), words=6)
        with torch.no_grad():
            module.network[0].weight *= weight  # type: ignore[index, union-attr, operator]
            module.network[0].bias.fill_(1 - weight)  # type: ignore[index, union-attr, operator]
            places = module.network[:2](torch.rand(2, 3, 8, 8)).movedim(1, 3).flatten(0, 2)  # type: ignore[index]
            module.words.copy_(places[::19][:6])  # type: ignore[operator]
        monitor = CollapseMonitor("network", "2", 11, word_network="network", word_levels={"1": "words"})
        trainer = fit(module, ToyImages(**DATA), callbacks=[monitor], num_sanity_val_steps=2)
        numbers[name] = {key: float(value) for key, value in trainer.callback_metrics.items()}
    collapsed, random = numbers["collapsed"], numbers["random"]
    assert collapsed["val/effective_rank_network"] == pytest.approx(1, abs=1e-3)
    assert collapsed["val/cosine_network"] == pytest.approx(1, abs=1e-5)
    assert collapsed["val/spread_network"] == pytest.approx(0, abs=1e-3)
    assert collapsed["val/words_in_use_1"] == 1 and collapsed["val/words_perplexity_1"] == pytest.approx(1)
    assert 1.1 < random["val/effective_rank_network"] <= 4
    assert random["val/cosine_network"] < 0.999 and random["val/spread_network"] > 0.01
    assert random["val/words_in_use_1"] > 1 and random["val/words_perplexity_1"] > 1.01


def test_patches_nearest_to_a_word() -> None:
    images, features = torch.zeros(3, 1, 8, 8), torch.zeros(3, 2, 4, 4)
    images[1, :, 2:4, 4:6] = 1.0  # the place (1, 2) of the map
    features[1, :, 1, 2] = torch.tensor([1.0, 1.0])
    images[2, :, 0:2, 0:2] = 0.5  # the corner
    features[2, :, 0, 0] = torch.tensor([0.5, 0.5])
    first, second = nearest_patches(images, features, torch.tensor([1.0, 1.0]), 2)
    assert first.shape == (1, 4, 4) and first.sum() == 4 and (first[0, 1:3, 1:3] == 1).all()
    assert second.sum() == 2 and (second[0, 1:3, 1:3] == 0.5).all()
    assert len(nearest_patches(images, features, torch.zeros(2), 9)) == 3
    assert spread_words(torch.tensor([0, 5, 1, 9, 0, 3]), 3).tolist() == [3, 5, 2]
    assert spread_words(torch.tensor([0, 5]), 3).tolist() == [1]


def test_border_places_are_neither_counted_nor_drawn() -> None:
    class Bordered(nn.Module):
        border = 1
        words = torch.tensor([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])

    module = classifier(nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(32, 3)))
    module.vocabulary = Bordered()
    image = torch.full((2, 2, 4, 4), 9.0)
    image[:, :, 1:3, 1:3] = 0.0
    image[1, :, 2, 2] = 1.0
    words = WordMaps(module, "network", {"0": "vocabulary"})
    (maps,) = words.maps(quiet_trainer(), image)
    assert words.nearest(0, maps).bincount().tolist() == [7, 1]
    (patch,) = nearest_patches(image, maps, torch.ones(2), 1, border=1)
    assert patch.shape == (2, 2, 2)
    torch.testing.assert_close(patch, image[1, :, 1:3, 1:3])
    with pytest.raises(ValueError, match="Classifier has no vocabularies of its own: name the maps"):
        WordMaps(classifier(), "network")


def test_the_probes_read_obow_by_themselves(tmp_path: Path) -> None:
    module = obow_toy.module(obow_toy.network(norm=True))
    before = obow_toy.state(module)
    probes = [OnlineLinearProbe("student", "2"), OnlineLinearProbe("teacher", "2"), KNNProbe("teacher", "2")]
    callbacks = [*probes, CollapseMonitor("student", "2"), VocabularyPanel(num_words=2, max_samples=8)]
    trainer = fit(module, obow_toy.CropImages(batch_size=8, val_fraction=0.25), callbacks=callbacks,
                  max_epochs=2, num_sanity_val_steps=1, default_root_dir=tmp_path)  # fmt: skip
    alone = obow_toy.module(obow_toy.network(norm=True))
    alone.load_state_dict(before)
    fit(alone, obow_toy.CropImages(batch_size=8, val_fraction=0.25), max_epochs=2)
    torch.testing.assert_close(dict(alone.state_dict()), dict(module.state_dict()), rtol=0, atol=0)
    names = {"val/probe_student_acc", "val/probe_teacher_acc", "val/knn20_t0.07_teacher_acc", "val/words_in_use_1"}
    assert names | {"val/words_perplexity_2", "val/spread_student"} <= trainer.callback_metrics.keys()
    assert len(list(tmp_path.glob("vocabulary_[12].png"))) == 2


def test_panel_of_a_fit_a_test_and_of_two_levels(tmp_path: Path) -> None:
    module = with_words(classifier())
    panel = VocabularyPanel({"0": "words", "1": "words"}, "network", num_words=3, num_patches=4, max_samples=9)
    fit(module, ToyImages(**DATA), callbacks=[panel], default_root_dir=tmp_path)
    for level in ("0", "1"):
        width, height = Image.open(tmp_path / f"vocabulary_{level}.png").size
        assert width > height > 200
    (tmp_path / "vocabulary_1.png").unlink()
    quiet_trainer(callbacks=[panel], default_root_dir=tmp_path).test(module, ToyImages(**DATA), verbose=False)
    assert (tmp_path / "vocabulary_1.png").stat().st_size > 1000
    assert not list(tmp_path.glob(".*tmp*"))
    with pytest.warns(UserWarning, match="there was no validation"):
        fit(module, ToyImages(batch_size=10), callbacks=[panel])


# Two processes, command line


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    two, one = two_processes.launch(probe_worker, "ddp", tmp_path), probe_worker.run(devices=1)
    for key, (first, second) in two["heads"].items():
        assert torch.equal(first, second), key
        torch.testing.assert_close(first, one["heads"][key][0], rtol=1e-3, atol=1e-3, msg=key)
    names = {"val/knn20_t0.07_network_acc", "val/probe_network_acc", "test/fewshot_5way_1shot_network_acc"}
    names |= {"test/knn20_t0.07_network_acc", "val/words_in_use_layer3", "val/effective_rank_network"}
    assert names <= two["metrics"].keys()
    torch.testing.assert_close(two["metrics"], one["metrics"], rtol=1e-4, atol=1e-4)


def test_from_the_command_line(tmp_path: Path) -> None:
    words = ["fit", "--model=Classifier", "--model.network=lit_kd.models.vision_model", "--model.network.name=resnet8"]
    words += ["--model.network.num_classes=10", "--data=DigitsDataModule", "--data.train_fraction=0.05"]
    words += ["--data.val_fraction=0.05", f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]
    words += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    words += ["--trainer.callbacks+=OnlineLinearProbe", "--trainer.callbacks.network=network"]
    words += ["--trainer.callbacks.optimizer=torch.optim.SGD", "--trainer.callbacks.optimizer.lr=0.5"]
    words += ["--trainer.callbacks+=KNNProbe", "--trainer.callbacks.network=network", "--trainer.callbacks.k=7"]
    words += ["--trainer.callbacks+=CollapseMonitor", "--trainer.callbacks.network=network"]
    words += ["--trainer.callbacks+=FewShotEpisodes", "--trainer.callbacks.shots=[1,2]"]
    words += ["--trainer.callbacks.network=network"]
    main(words)
    (path,) = tmp_path.rglob("*.ckpt")
    state = torch.load(path, weights_only=True)["callbacks"]["OnlineLinearProbe(network, None)"]
    assert state["head"]["weight"].any() and state["optimizer"]["param_groups"][0]["lr"] == 0.5
