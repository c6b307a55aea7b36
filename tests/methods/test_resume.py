"""A run resumed from any moment equals the straight one to the bit, and a checkpoint holds what it should."""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_toy import digits, networks
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_kd.cli import main
from lit_kd.methods import MCMIDistill, MCMITeacher
from lit_kd.methods.classifier import Classifier
from lit_kd.objectives import CRD, KD

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
MODULES: dict[str, Callable[[nn.Module, nn.Module], Classifier]] = {
    "kd": lambda student, teacher: MCMIDistill(student, teacher, 10, KD()),
    "crd": lambda student, teacher: MCMIDistill(student, teacher, 10, CRD(feature_dim=8, num_negatives=16)),
    "frozen": lambda student, teacher: MCMITeacher(student, 10, centroids="frozen"),
}
# Two epochs of six batches and three steps. A file for each moment from which a run may have to go on:
MOMENTS: dict[str, dict[str, Any]] = {
    "first_epoch-step=2": {"every_n_train_steps": 2},
    "last_batch-step=3": {"every_n_train_steps": 3},
    "validated-step=3": {"save_on_train_epoch_end": False},
    "epoch_end-step=3": {"save_on_train_epoch_end": True, "mode": "max"},  # Lightning wants them to differ by more
    "second_epoch-step=5": {"every_n_train_steps": 5},
}


def fit(
    module: LightningModule, *callbacks: Callback, checkpoint: Path | None = None, **settings: Any
) -> dict[str, Any]:
    """Train; all that training needs to go on from its end."""
    torch.set_num_threads(1)
    trainer = Trainer(
        **{**QUIET, "max_epochs": 2, "accumulate_grad_batches": 2, **settings},
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    )
    trainer.fit(module, digits(), ckpt_path=checkpoint)
    return {
        "weights": {key: value.clone() for key, value in module.state_dict().items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "rate": trainer.lr_scheduler_configs[0].scheduler.state_dict()["_last_lr"],
        "step": trainer.global_step,
        "random": torch.get_rng_state(),
    }


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """Of the straight run of a method: how it ended, and the folder of its checkpoints."""

    @cache
    def run(method: str) -> tuple[dict[str, Any], Path]:
        folder: Path = tmp_path_factory.mktemp(method)
        keep = [
            ModelCheckpoint(folder, filename=name.split("-")[0] + "-{step}", save_top_k=-1, **when)
            for name, when in MOMENTS.items()
        ]
        return fit(MODULES[method](*networks(seed=1)), *keep), folder

    return run


def assert_same(resumed: dict[str, Any], expected: dict[str, Any]) -> None:
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)


# Resume


@pytest.mark.parametrize("moment", MOMENTS)
def test_resumed_equals_straight(moment: str, straight: Any) -> None:
    """Of every method at a random moment: tests/faults."""
    expected, folder = straight("kd")
    resumed = fit(MODULES["kd"](*networks(seed=2)), checkpoint=folder / f"{moment}.ckpt")
    assert_same(resumed, expected)


def test_frozen_table_is_not_taken_again(straight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, folder = straight("frozen")
    module = MCMITeacher(networks(seed=2)[0], 10, measure_every_n_epochs=100)
    monkeypatch.setattr(module, "measure", partial(pytest.fail, "measured again"))
    resumed = fit(module, checkpoint=folder / "first_epoch-step=2.ckpt")
    assert_same(resumed["weights"], expected["weights"])


# Checkpoints


@pytest.mark.parametrize("method", ["kd", "crd"])
def test_checkpoint_holds_no_teacher(method: str, straight: Any) -> None:
    expected, folder = straight(method)
    path = folder / "validated-step=3.ckpt"
    content = torch.load(path, weights_only=True)
    assert not [key for key in content["state_dict"] if key.startswith("teacher.")]
    momentum = [state["momentum_buffer"] for state in expected["optimizer"]["state"].values()]
    size = sum(tensor.nbytes for tensor in [*expected["weights"].values(), *momentum])
    assert path.stat().st_size < 1.2 * size


def test_hyperparameters_hold_plain_values_only() -> None:
    module = MCMIDistill(*networks(seed=1), 10, CRD(), optimizer=partial(torch.optim.SGD, lr=0.1))
    assert module.hparams["num_classes"] == 10
    assert not {"student", "teacher", "objective", "optimizer"} & set(module.hparams)
    assert not any(isinstance(value, nn.Module) or callable(value) for value in module.hparams.values())


@pytest.mark.parametrize(
    ("method", "objective"), [("kd", {}), ("crd", {"objective": CRD(feature_dim=8, num_negatives=16)})]
)
def test_load_from_checkpoint_is_strict(method: str, objective: dict[str, Any], tmp_path: Path, straight: Any) -> None:
    path = straight(method)[1] / "validated-step=3.ckpt"
    student, teacher = networks(seed=2)
    given: dict[str, Any] = {"student": student, "teacher": teacher, **objective}
    module = MCMIDistill.load_from_checkpoint(path, **given, weights_only=True)
    content = torch.load(path, weights_only=True)
    assert_same(dict(module.state_dict()), content["state_dict"])

    del content["state_dict"]["network.backbone.linear.weight"]
    torch.save(content, tmp_path / "lacking.ckpt")
    with pytest.raises(RuntimeError, match=r"Missing key.*network\.backbone\.linear\.weight"):
        MCMIDistill.load_from_checkpoint(tmp_path / "lacking.ckpt", **given)


def test_checkpoint_of_the_command_line_rebuilds_everything(tmp_path: Path) -> None:
    teacher = networks(seed=0)[1]
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    network = {"class_path": "lit_kd.models.vision_model", "init_args": {"name": "resnet8", "num_classes": 10}}
    trained = {**network["init_args"], "checkpoint": str(tmp_path / "teacher.pt")}
    config = {
        "trainer": {**QUIET, "max_steps": 2, "max_epochs": 1, "default_root_dir": str(tmp_path)},
        "model": {
            "class_path": "MCMIDistill",
            "init_args": {
                "student": network,
                "teacher": {**network, "init_args": trained},
                "objective": {"class_path": "KD", "init_args": {"temperature": 3.0}},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.02, "momentum": 0.5}},
            },
        },
        "data": {"class_path": "DigitsDataModule", "init_args": {"batch_size": 4, "train_fraction": 0.05}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    main(["fit", "--config", str(tmp_path / "config.json")])

    (path,) = tmp_path.glob("checkpoints/*.ckpt")
    module = MCMIDistill.load_from_checkpoint(path, weights_only=True)
    content = torch.load(path, weights_only=True)
    assert_same(dict(module.state_dict()), content["state_dict"])
    assert not [key for key in content["state_dict"] if key.startswith("teacher.")]
    assert_same(dict(module.teacher.module.state_dict()), dict(teacher.state_dict()))
    assert module.objective.temperature == 3.0
    optimizer = module.make_optimizer(module.network.parameters())
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.02, 0.5)


# Modes


class Modes(Callback):
    """The modes seen in training steps."""

    def __init__(self) -> None:
        self.student: set[bool] = set()
        self.teacher: set[bool] = set()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.student |= {part.training for part in module.student.modules()}
        self.teacher |= {part.training for part in module.teacher.modules()}


def test_student_trains_and_teacher_stays() -> None:
    student, teacher = networks(seed=1)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    modes = Modes()
    fit(MCMIDistill(student.eval(), teacher.train(), 10), modes, max_epochs=2, val_check_interval=2)
    assert modes.student == {True}
    assert modes.teacher == {False}
    assert_same(dict(teacher.state_dict()), before)
