"""Linear evaluation leaves the backbone as it is; fine-tuning moves all of it."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import ToyImages, fit, quiet_trainer, toy_network

from lit_kd.cli import main
from lit_kd.datamodules import DigitsDataModule
from lit_kd.methods import FineTune, LinearEvaluation, OBoWModule
from lit_kd.models import save_exported, vision_model

SHAPE = (3, 8, 8)
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def backbone(seed: int = 0, num_classes: int = 0, **settings: Any) -> nn.Module:
    torch.manual_seed(seed)
    network = vision_model("resnet8", num_classes, **settings)
    network(torch.rand(8, 3, 8, 8))  # running statistics of some images
    return network


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def linear(network: nn.Module | None = None, num_classes: int = 3, **settings: Any) -> LinearEvaluation:
    defaults: dict[str, Any] = {"image_shape": SHAPE, "optimizer": sgd}
    return LinearEvaluation(network or backbone(), num_classes, **{**defaults, **settings})


def test_backbone_is_unchanged_to_the_bit_and_only_the_head_learns_and_is_saved(tmp_path: Path) -> None:
    network = backbone(model_kwargs={"drop_rate": 0.5}).train()
    before, module = copy_of(network), linear(network)
    modes = set()

    def watch(*args: Any) -> None:
        modes.update(part.training for part in network.modules())

    network.register_forward_hook(watch)
    trainer = fit(module, ToyImages(batch_size=10, val_fraction=0.2), max_epochs=2, num_sanity_val_steps=2)
    trainer.test(module, ToyImages(), verbose=False)
    torch.testing.assert_close(copy_of(network), before, rtol=0, atol=0)
    assert modes == {False}
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert sum(len(group["params"]) for group in trainer.optimizers[0].param_groups) == 2
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["state_dict"].keys() == {"network.head.0.weight", "network.head.0.bias"}
    loaded = LinearEvaluation.load_from_checkpoint(tmp_path / "a.ckpt", backbone=network, optimizer=sgd)
    image = torch.rand(4, 3, 8, 8)
    assert torch.equal(loaded.eval()(image), module.eval()(image)) and module(image).abs().max() > 0


def test_logits_are_the_head_on_the_pooled_features() -> None:
    network, image = toy_network(), torch.rand(5, 3, 8, 8)
    module = linear(network, layer="1")
    expected = module.network.head(network[:2](image).mean((2, 3)))  # type: ignore[operator, union-attr]
    torch.testing.assert_close(module(image), expected)
    with pytest.raises(ValueError, match="no sub-module 'layer9'"):
        linear(layer="layer9")
    with pytest.raises(ValueError, match=r"neither \(B, C\) nor \(B, C, H, W\): name another layer"):
        linear(nn.Sequential(nn.Flatten(2)))


def test_batch_norm_of_the_head_has_statistics_of_its_own() -> None:
    module = linear(batch_norm=True)
    assert {key for key in module.state_dict() if "head" in key} == {
        *(f"network.head.0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")),
        *(f"network.head.1.{name}" for name in ("weight", "bias")),
    }
    fit(module, ToyImages(batch_size=10))
    assert module.network.head[0].num_batches_tracked == 6  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("module", "epochs", "expected"),
    [
        (lambda: linear(optimizer=None), 4, [[10.0], [8.5355], [5.0], [1.4645]]),
        (
            lambda: FineTune(backbone(), 3, image_shape=SHAPE),
            5,
            [[2e-4, 0.5]] * 3 + [[4e-5, 0.1]] + [[8e-6, 0.02]],
        ),
    ],
)
def test_published_recipes(module: Any, epochs: int, expected: list[list[float]]) -> None:
    built, rates = module(), []

    def note(*args: Any) -> None:
        rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    built.on_train_epoch_start = note
    trainer = quiet_trainer(max_epochs=epochs)
    trainer.fit(built, datamodule=ToyImages(batch_size=60))
    assert rates == [pytest.approx(row, rel=1e-4) for row in expected]
    for group in trainer.optimizers[0].param_groups:
        assert (group["momentum"], group["weight_decay"]) == (0.9, 0)


def test_fine_tuning_moves_backbone_and_head_and_freezes_the_old_classifier() -> None:
    network = backbone(num_classes=7)
    before = copy_of(network)
    module = FineTune(network, 3, backbone_lr=0.01, head_lr=0.1, image_shape=SHAPE)
    trainer = fit(module, ToyImages(batch_size=10, val_fraction=0.2))
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert before.keys() - changed == {
        "normalize.mean", "normalize.std", "backbone.linear.weight", "backbone.linear.bias"
    }  # fmt: skip
    backbone_group, head_group = trainer.optimizers[0].param_groups
    assert len(head_group["params"]) == 2 and (backbone_group["initial_lr"], head_group["initial_lr"]) == (0.01, 0.1)
    module(torch.rand(2, *SHAPE)).sum().backward()
    grads = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not grads, "DDP would wait for them"


@pytest.mark.parametrize("freeze", [True, False])
def test_statistics_can_be_frozen_while_weights_learn(freeze: bool) -> None:
    network = backbone()
    before = copy_of(network)
    module = FineTune(network, 3, backbone_lr=0.01, freeze_norm_stats=freeze, image_shape=SHAPE)
    fit(module, ToyImages(batch_size=10, val_fraction=0.2), max_epochs=2)
    same = {key.split(".")[-1] for key, value in network.state_dict().items() if torch.equal(value, before[key])}
    assert ({"running_mean", "running_var", "num_batches_tracked"} <= same) is freeze
    assert "weight" not in same


def test_top5_is_measured_where_it_says_more() -> None:
    few = fit(linear(), ToyImages(batch_size=10, val_fraction=0.2)).callback_metrics
    assert "val/acc" in few and "val/acc5" not in few
    data = DigitsDataModule(train_fraction=0.05, val_fraction=0.1)
    module = linear(num_classes=10, image_shape=(3, 32, 32))
    many = quiet_trainer(max_epochs=1)
    many.fit(module, data)
    assert 0 < many.callback_metrics["val/acc"] < many.callback_metrics["val/acc5"] < 1
    logits = torch.cat([module.eval()(batch["image"] / 255) for batch in data.val_dataloader()])
    labels = torch.cat([batch["label"] for batch in data.val_dataloader()])
    expected = (logits.topk(5).indices == labels[:, None]).any(1).float().mean()
    assert float(many.callback_metrics["val/acc5"]) == pytest.approx(float(expected))


@pytest.mark.parametrize("method", ["LinearEvaluation", "FineTune"])
def test_from_the_command_line_with_a_tenth_of_the_labels(method: str, tmp_path: Path) -> None:
    save_exported(backbone(seed=3), tmp_path)
    words = ["fit", f"--model={method}", "--model.backbone=lit_kd.models.vision_model"]
    words += ["--model.backbone.name=resnet8", "--model.backbone.num_classes=0"]
    words += [f"--model.backbone.checkpoint={tmp_path / 'model.safetensors'}", "--data=DigitsDataModule"]
    words += ["--data.train_fraction=0.1", "--data.val_fraction=0.1", f"--trainer.default_root_dir={tmp_path}"]
    words += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    main([*words, "--trainer.logger=false"])
    (path,) = tmp_path.rglob("*.ckpt")
    keys = torch.load(path, weights_only=True)["state_dict"].keys()
    assert any("backbone" in key for key in keys) is (method == "FineTune")
    loaded = {"LinearEvaluation": LinearEvaluation, "FineTune": FineTune}[method].load_from_checkpoint(path)
    assert loaded.num_classes == 10


def test_a_checkpoint_of_obow_is_a_backbone(tmp_path: Path) -> None:
    student = backbone(seed=5)
    trainer = quiet_trainer()
    trainer.strategy.connect(OBoWModule(student, num_words=8, image_shape=(3, 32, 32)))
    trainer.save_checkpoint(tmp_path / "obow.ckpt", weights_only=True)
    network = vision_model("resnet8", 0, checkpoint=tmp_path / "obow.ckpt")
    torch.testing.assert_close(copy_of(network), copy_of(student), rtol=0, atol=0)
    image = torch.rand(2, 3, 8, 8)
    module = linear(network)
    module.eval()
    torch.testing.assert_close(module(image), module.network.head(student.eval()(image)))  # type: ignore[operator, union-attr]


@pytest.mark.slow
def test_digits_from_random_features_and_with_few_labels() -> None:
    """The head on random features beats guessing (0.1) by far; fine-tuning with 10 % of the labels beats a few."""
    data = DigitsDataModule(batch_size=64, val_fraction=0.2)
    module = LinearEvaluation(backbone(), 10, batch_norm=True, optimizer=sgd)
    trainer = quiet_trainer(max_epochs=4)
    trainer.fit(module, data)
    assert trainer.callback_metrics["val/acc"] > 0.7
    data = DigitsDataModule(batch_size=16, train_fraction=0.1, val_fraction=0.2)
    tuned = FineTune(backbone(), 10, backbone_lr=0.02, head_lr=0.1)
    trainer = quiet_trainer(max_epochs=12)
    trainer.fit(tuned, data)
    assert trainer.callback_metrics["val/acc"] > 0.5
