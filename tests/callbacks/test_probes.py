import math
from pathlib import Path
from typing import Any

import probe_worker
import pytest
import torch
import torch.nn.functional as F
import two_processes
from lightning.pytorch import Callback, LightningModule, Trainer
from probe_toy import DATA, NoLabels, classifier, norm_network, probe, with_words
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toy import ToyImages, fit, quiet_trainer, toy_network, weights

from lit_kd.callbacks import (
    CollapseMonitor,
    KNNProbe,
    OnlineLinearProbe,
    VocabularyPanel,
    weighted_knn,
)
from lit_kd.cli import main
from lit_kd.methods import Classifier
from lit_kd.models import vision_model
from lit_kd.models.embedding import PooledFeatures

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
