"""OBoW goes on where it stopped: teacher, vocabularies, mean distances and clock are in the checkpoint."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from obow_toy import CropImages, fit, module, network, same, state
from toy import quiet_trainer

from lit_kd.methods import OBoWModule
from lit_kd.models import load_checkpoint, vision_model

MOMENTS: dict[str, dict[str, Any]] = {
    "middle-step=3": {"every_n_train_steps": 3},
    "last_batch-step=4": {"every_n_train_steps": 4},
    "epoch_end-step=4": {"save_on_train_epoch_end": True},
    "second_epoch-step=6": {"every_n_train_steps": 6},
}


def test_resumed_equals_straight(tmp_path: Path) -> None:
    """With drawn places of new words and the published optimizer and schedule; with counted ones: tests/faults."""
    recipe: dict[str, Any] = {"optimizer": None, "lr_scheduler": None}

    class Data(CropImages):
        def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
            batch = super().on_after_batch_transfer(batch, dataloader_idx)
            return {key: value for key, value in batch.items() if key != "visit"}

    settings: dict[str, Any] = {"max_epochs": 2, "accumulate_grad_batches": 2, "enable_checkpointing": True}
    keep = [
        ModelCheckpoint(tmp_path, filename=name.split("-")[0] + "-{step}", save_top_k=-1, **when)
        for name, when in MOMENTS.items()
    ]
    torch.manual_seed(1)
    straight = module(network(norm=True), **recipe)
    trainer = fit(straight, Data(batch_size=8), callbacks=keep, **settings)
    expected, optimizer = state(straight), trainer.optimizers[0].state_dict()
    for seed, moment in enumerate(MOMENTS):
        torch.manual_seed(seed)
        resumed = module(network(norm=True), **recipe)
        trainer = quiet_trainer(**{**settings, "enable_checkpointing": False})
        trainer.fit(resumed, datamodule=Data(batch_size=8), ckpt_path=tmp_path / f"{moment}.ckpt")
        same(state(resumed), expected)
        torch.testing.assert_close(trainer.optimizers[0].state_dict(), optimizer, rtol=0, atol=0)
        assert int(resumed.teacher.clock) == trainer.global_step == 8


def test_first_update_after_a_resume_is_that_of_the_step(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(module(), callbacks=[keep], enable_checkpointing=True)
    obow, momenta = module(), []
    original = obow.teacher.momentum_at
    obow.teacher.momentum_at = lambda step: (momenta.append(step), original(step))[1]
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(obow, datamodule=CropImages(batch_size=8), ckpt_path=tmp_path / "step=3.ckpt")
    assert sorted({*momenta} - {0, 2}) == [3, 4, 5, 6, 7]


def test_resume_within_an_effective_batch_updates_no_second_time(tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, o: Any, b: Any, i: int) -> None:
            if i == 4:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    obow = module()
    fit(obow, callbacks=[Save()], accumulate_grad_batches=4)
    saved = torch.load(tmp_path / "within.ckpt", weights_only=True)
    assert saved["global_step"] == 1 and saved["state_dict"]["teacher.clock"] == 2
    resumed = module()
    trainer = quiet_trainer(max_epochs=1, accumulate_grad_batches=4)
    trainer.fit(resumed, datamodule=CropImages(batch_size=8), ckpt_path=tmp_path / "within.ckpt")
    assert resumed.teacher.clock == 2 == trainer.global_step


def test_checkpoint_holds_what_training_needs_and_loads_anywhere(tmp_path: Path) -> None:
    obow = module(vision_model("resnet8", num_classes=0), levels=2, border=0)
    trainer = fit(obow, max_steps=2)
    trainer.save_checkpoint(tmp_path / "obow.ckpt")
    content = torch.load(tmp_path / "obow.ckpt", weights_only=True)
    own = {key for key in content["state_dict"] if not key.startswith(("student.", "teacher.module."))}
    head = {"kappa", "expand.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"}
    head |= {"norm.num_batches_tracked", "project.weight", "project.bias"}
    expected = {f"heads.{level}.{name}" for level in (0, 1) for name in head} | {"teacher.clock"}
    expected |= {f"vocabularies.{level}.{name}" for level in (0, 1) for name in ("words", "pointer", "mean_distance")}
    assert own == expected
    loaded = OBoWModule.load_from_checkpoint(
        tmp_path / "obow.ckpt", student=vision_model("resnet8", num_classes=0), weights_only=True
    )
    same(state(loaded), state(obow))
    assert (loaded.levels, loaded.image_shape) == (obow.levels, (3, 16, 16))
    student = vision_model("resnet8", num_classes=0)
    load_checkpoint(student, tmp_path / "obow.ckpt")
    same(dict(student.state_dict()), dict(obow.student.state_dict()))
