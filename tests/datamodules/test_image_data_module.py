"""What every image data module promises: batches, options, errors, resume, several processes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn

from lit_kd.datamodules import DigitsDataModule, ImageDataModule
from lit_kd.datamodules.augment import counter_uniform, random_crop_flip
from lit_kd.datamodules.loading import InMemoryImages

NAMES = ["cat", "dog", "owl"]


class ToyDataModule(ImageDataModule):
    """30 training and 9 test images of 8x8; the first pixel of an image is its index."""

    num_classes = 3
    image_size = 8

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.loads: list[str] = []

    def load(self, split: str) -> InMemoryImages:
        self.loads.append(split)
        n = 30 if split == "train" else 9
        pixels = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 3, 8, 8)
        return InMemoryImages(pixels, torch.arange(n) % 3, NAMES)


class Recorder(pl.LightningModule):
    """Trains one weight and keeps what it saw; raises before the step `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.stop_at = stop_at
        self.seen: list[tuple[int, list[int], list[int], float]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        pixels = batch["image"].double().sum().item()
        self.seen.append((self.current_epoch, batch["index"].tolist(), batch["visit"].tolist(), pixels))
        return self.weight * batch["image"].mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        assert "visit" not in batch

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        assert "visit" not in batch

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return batch["index"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(folder: Path, **settings: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{"accelerator": "cpu", "devices": 1, "default_root_dir": folder} | quiet | settings)


def ready(data: ImageDataModule, *stages: str) -> ImageDataModule:
    for stage in stages or ("fit",):
        data.setup(stage)
    return data


def test_training_batches() -> None:
    data = ready(ToyDataModule(batch_size=7, seed=2))
    raw = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(dict(raw), 0)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "image": (torch.float32, (7, 3, 8, 8)),
        "label": (torch.int64, (7,)),
        "index": (torch.int64, (7,)),
        "visit": (torch.int64, (7,)),
    }
    draws = counter_uniform(2, batch["visit"], batch["index"], 3)
    assert torch.equal(batch["image"], random_crop_flip(raw["image"], draws, 4, True) / 255)
    assert torch.equal(batch["label"], batch["index"] % 3)


@pytest.mark.parametrize("augment", [True, False])
def test_batches_without_augmentation(augment: bool) -> None:
    data = ready(ToyDataModule(augment=augment, val_fraction=0.1), "fit", "test")
    loaders = [data.train_eval_dataloader(), data.val_dataloader(), data.test_dataloader()]
    if not augment:
        loaders.append(data.train_dataloader())
    for loader in loaders:
        for raw in loader:
            batch = data.on_after_batch_transfer(raw, 0)
            assert torch.equal(batch["image"][:, 0, 0, 0], batch["index"] / 255)


def test_evaluation_loaders_hold_every_sample_once() -> None:
    data = ready(ToyDataModule(val_fraction=0.2, eval_batch_size=4, omit_classes=["dog"]), "fit", "test")
    index, label = data.train_samples()
    seen = torch.cat([batch["index"] for batch in data.train_eval_dataloader()])
    assert torch.equal(seen, index)
    assert torch.equal(label, index % 3)
    val = torch.cat([batch["index"] for batch in data.val_dataloader()])
    assert len(val) == 4
    assert not set(val.tolist()) & set(index.tolist())
    assert 1 not in set(label.tolist()) | set((val % 3).tolist())
    test = torch.cat([batch["index"] for batch in data.predict_dataloader()])
    assert torch.equal(test, torch.arange(9))
    assert data.omitted == [1]
    assert data.class_names == NAMES


def test_few_samples_and_many_draws() -> None:
    data = ready(ToyDataModule(train_fraction=0.05, samples_per_epoch=30, batch_size=10))
    assert len(data.train_samples()[0]) == 3  # one a class
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 3
    visits = torch.cat([batch["visit"] for batch in batches])
    assert torch.equal(visits, torch.arange(30) // 3)


def test_sets_are_read_when_needed_and_once() -> None:
    data = ToyDataModule()
    data.setup("fit")
    data.setup("validate")
    assert data.loads == ["train"]
    assert data.val_dataloader() == []
    data.setup("test")
    data.setup("predict")
    assert data.loads == ["train", "test"]


def test_choice_does_not_depend_on_stage_or_order() -> None:
    settings: dict[str, Any] = {"val_fraction": 0.3, "train_fraction": 0.5}
    first = ready(ToyDataModule(**settings), "fit")
    second = ready(ToyDataModule(**settings), "test", "validate")
    assert torch.equal(first.train_index, second.train_index)
    assert torch.equal(first.val_index, second.val_index)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_fraction": 1.5}, "train_fraction=1.5"),
        ({"val_fraction": -0.1}, "val_fraction=-0.1"),
        ({"eval_batch_size": 0}, "eval_batch_size=0"),
        ({"samples_per_epoch": 0}, "samples_per_epoch=0"),
    ],
)
def test_wrong_arguments_fail_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToyDataModule(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"omit_classes": ["cta"]}, "'cta', which is no class"),
        ({"omit_classes": [3]}, "3, which is no class"),
        ({"omit_classes": [0, 1, 2]}, "leaves no class"),
    ],
)
def test_wrong_classes_fail_in_setup(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToyDataModule(**settings).setup("fit")


def test_loader_before_setup() -> None:
    with pytest.raises(RuntimeError, match=r"call setup\('fit'\)"):
        ToyDataModule().train_dataloader()


def test_float_images_must_lie_in_the_unit_interval() -> None:
    data = ready(ToyDataModule())
    batch = {"image": torch.randn(2, 3, 8, 8), "index": torch.arange(2)}
    with pytest.raises(ValueError, match="must lie in .0, 1.: leave normalisation to the network"):
        data.on_after_batch_transfer(batch, 0)
    unit = {"image": torch.rand(2, 3, 8, 8), "index": torch.arange(2)}
    assert torch.equal(ready(data).on_after_batch_transfer(unit, 0)["image"], unit["image"])


def test_overfit_batches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overfit_batches.*use train_fraction"):
        trainer(tmp_path, overfit_batches=2, max_epochs=1).fit(Recorder(), ToyDataModule())


# In mid-epoch, at the end of an epoch, in the second epoch; the order of batches is the same with workers.
@pytest.mark.parametrize(
    ("stop_at", "accumulate", "num_workers"),
    [*((stop_at, accumulate, 0) for stop_at in (2, 4, 6, 8) for accumulate in (1, 2)), (4, 1, 2), (6, 2, 2)],
)
def test_resume_equals_a_straight_run(tmp_path: Path, stop_at: int, accumulate: int, num_workers: int) -> None:
    """4 batches an epoch, 3 epochs; a checkpoint each optimizer step, the run stops after `stop_at` batches."""
    settings: dict[str, Any] = {"batch_size": 8, "num_workers": num_workers, "val_fraction": 0.1}
    straight = Recorder()
    trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate, enable_checkpointing=False).fit(
        straight, ToyDataModule(**settings)
    )
    assert [epoch for epoch, *_ in straight.seen] == [0] * 4 + [1] * 4 + [2] * 4
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    first = Recorder(stop_at)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[keep]).fit(
            first, ToyDataModule(**settings)
        )
    rest = Recorder()
    trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate, enable_checkpointing=False).fit(
        rest, ToyDataModule(**settings), ckpt_path=tmp_path / f"step={stop_at // accumulate}.ckpt"
    )
    assert first.seen + rest.seen == straight.seen
    assert torch.equal(rest.weight, straight.weight)


@pytest.mark.parametrize("limit", [1.0, 3])  # 3 of 4 batches: the next epoch starts at its own first batch
@pytest.mark.parametrize("last", ["epoch", "step", "max_steps"])
def test_resume_of_a_finished_run(tmp_path: Path, last: str, limit: float) -> None:
    """Lightning's epoch numbers may be off by one after such a resume; the batches must not be."""
    settings: dict[str, Any] = {"limit_train_batches": limit}
    straight, first, rest = Recorder(), Recorder(), Recorder()
    trainer(tmp_path, max_steps=10, enable_checkpointing=False, **settings).fit(straight, ToyDataModule(batch_size=8))
    if last == "max_steps":
        short = trainer(tmp_path, max_steps=2, **settings)
    else:
        steps = 1 if last == "step" else None
        keep = ModelCheckpoint(tmp_path, "last", every_n_train_steps=steps)
        short = trainer(tmp_path, max_epochs=1, callbacks=[keep], **settings)
    short.fit(first, ToyDataModule(batch_size=8))
    if last == "max_steps":
        short.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, max_steps=10, enable_checkpointing=False, **settings).fit(
        rest, ToyDataModule(batch_size=8), ckpt_path=tmp_path / "last.ckpt"
    )
    assert [seen[1:] for seen in first.seen + rest.seen] == [seen[1:] for seen in straight.seen]


def test_every_stage_through_the_trainer(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    data = ToyDataModule(val_fraction=0.1)
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    run.fit(Recorder(), data)
    run.validate(Recorder(), data)
    run.test(Recorder(), data)
    assert torch.equal(torch.cat(run.predict(Recorder(), data)), torch.arange(9))
    assert not [w for w in recwarn if "sampler" in str(w.message).lower() or "batch_size" in str(w.message)]


DDP = """
import json, sys
import torch
from test_image_data_module import Recorder, ToyDataModule, trainer

class Gather(Recorder):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.drawn = getattr(self, "drawn", []) + [self.all_gather(batch["index"]).T.flatten().tolist()]
    def test_step(self, batch, batch_idx):
        self.tested = getattr(self, "tested", []) + batch["index"].tolist()

torch.set_num_threads(1)
run = trainer(sys.argv[1], devices=2, strategy="ddp", max_epochs=2, enable_checkpointing=False)
model, data = Gather(), ToyDataModule(batch_size=4, eval_batch_size=2)
run.fit(model, data)
run.test(model, data, verbose=False)
with open(f"{sys.argv[1]}/{run.global_rank}.json", "w") as file:
    json.dump([model.drawn, model.tested], file)
"""


@pytest.mark.dist
def test_plain_ddp(tmp_path: Path) -> None:
    """Two real processes draw the global batches of one, and test each sample once, without a warning."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    (tmp_path / "ddp.py").write_text(DDP)
    command = [sys.executable, str(tmp_path / "ddp.py"), str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "DistributedSampler" not in result.stderr
    assert "batch_size" not in result.stderr
    (drawn, first), (_, second) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    single = Recorder()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(single, ToyDataModule(batch_size=8))
    assert drawn == [index for _, index, _, _ in single.seen]
    assert sorted(first + second) == list(range(9))


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Recorder(), DigitsDataModule(train_fraction=0.1, omit_classes=["3", 4], val_fraction=0.1))
    loaded = DigitsDataModule.load_from_checkpoint(run.checkpoint_callback.best_model_path, weights_only=True)
    assert (loaded.train_fraction, loaded.omit_classes, loaded.val_fraction) == (0.1, ["3", 4], 0.1)


def test_pickle() -> None:
    data = ready(DigitsDataModule(batch_size=8))
    copy = pickle.loads(pickle.dumps(data))
    a, b = next(iter(data.train_dataloader())), next(iter(copy.train_dataloader()))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_command_line(tmp_path: Path) -> None:
    """Subclass mode sees the arguments of the base through **settings, and links read num_classes."""

    class Linked(Recorder):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.num_classes = num_classes

    class CLI(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    cli = CLI(
        Linked,
        ImageDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        run=False,
        args=["--data=CIFAR100DataModule", f"--data.root={tmp_path}", "--data.omit_classes=[3,dog]",
              "--data.train_fraction=0.5"],
    )  # fmt: skip
    assert cli.model.num_classes == 100
    assert cli.datamodule.root == tmp_path
    assert cli.datamodule.omit_classes == [3, "dog"]
    assert cli.datamodule.hparams.train_fraction == 0.5
    assert isinstance(cli.datamodule.hparams.root, str)
