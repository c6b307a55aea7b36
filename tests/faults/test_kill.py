"""Killed at a random moment and started again: trainings end with the weights of one run, stages with its files."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_toy import STAGES, TRAININGS, Moments, apart, draw, end, networks, newest, train, write
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_kd.cli import main
from lit_kd.language.records import Records


def killed(work: Any, *arguments: Any) -> None:
    assert end(apart(work, *arguments)) == -signal.SIGKILL


@pytest.mark.parametrize("name", TRAININGS)
def test_training(name: str, inputs: Path, straight: Any, tmp_path: Path) -> None:
    expected, moments = straight(name)
    killed(train, name, inputs, tmp_path, Moments(draw(name, moments.first_save + 1, moments.count)))
    checkpoint = newest(tmp_path)
    teacher = [key for key in torch.load(checkpoint, weights_only=True)["state_dict"] if key.startswith("teacher.")]
    assert bool(teacher) == (name == "OBoWModule")  # its teacher moves
    resumed = train(name, inputs, tmp_path, seed=2, ckpt_path=checkpoint)
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", STAGES)
def test_stage(name: str, inputs: Path, tmp_path: Path) -> None:
    moments = Moments()
    write(name, inputs, tmp_path / "straight", moments)
    killed(write, name, inputs, tmp_path / "killed", Moments(draw(name, 1, moments.count)))
    write(name, inputs, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def contents(folder: Path) -> dict[str, bytes]:
    """Of files that are whole: one that a kill has left half written is hidden and has a name of its own."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def test_command_line(tmp_path: Path) -> None:
    """``lit-kd fit -c config.json``, and the same with ``--ckpt_path``."""
    torch.save(networks(seed=0)[1].state_dict(), tmp_path / "teacher.pt")

    def config(folder: str, *callbacks: dict[str, Any]) -> list[str]:
        network: dict[str, Any] = {
            "class_path": "lit_kd.models.vision_model",
            "init_args": {"name": "resnet8", "num_classes": 10},
        }
        student = {**network["init_args"], "model_kwargs": {"drop_rate": 0.5}}
        teacher = {**network["init_args"], "checkpoint": str(tmp_path / "teacher.pt")}
        init_args = {"student": {**network, "init_args": student}, "teacher": {**network, "init_args": teacher}}
        save = {"dirpath": str(tmp_path / folder), "filename": "{step}", "every_n_train_steps": 1, "save_top_k": -1}
        keep = {"class_path": "ModelCheckpoint", "init_args": save}
        trainer = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 2}
        data = {"batch_size": 4, "samples_per_epoch": 24, "train_fraction": 0.03, "val_fraction": 0.02}
        content = {
            "trainer": {**trainer, "callbacks": [*callbacks, keep], "default_root_dir": str(tmp_path / folder)},
            "model": {"class_path": "MCMIDistill", "init_args": init_args},
            "data": {"class_path": "DigitsDataModule", "init_args": data},
        }
        file = tmp_path / f"{folder}.json"
        file.write_text(json.dumps(content))
        return ["fit", "-c", str(file)]

    main(config("straight"))
    moment = draw("command line", 20, 55)
    killed(main, config("killed", {"class_path": "fault_toy.Moments", "init_args": {"kill": moment}}))
    assert not (tmp_path / "killed/step=12.ckpt").exists()
    main([*config("killed"), "--ckpt_path", str(newest(tmp_path / "killed"))])
    ends = [torch.load(tmp_path / run / "step=12.ckpt", weights_only=True) for run in ("killed", "straight")]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        torch.testing.assert_close(*(end[part] for end in ends), rtol=0, atol=0)


class Large(Callback):
    """Makes checkpoints take a while to write."""

    def state_dict(self) -> dict[str, Any]:
        return {"ballast": torch.zeros(2_000_000)}


def test_while_a_checkpoint_is_written(inputs: Path, straight: Any, tmp_path: Path) -> None:
    """From outside, and one file is written again and again."""
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        again = ModelCheckpoint(
            folder, filename="again", every_n_train_steps=1, mode="max", enable_version_counter=False
        )
        process = apart(train, "LinearEvaluation", inputs, folder, Large(), again)
        while process.is_alive() and not (len(list(folder.glob("*.ckpt"))) > 1 and list(folder.glob(".*tmp*"))):
            time.sleep(0.0003)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if list(folder.glob(".*tmp*")):
            break
    assert list(folder.glob(".*tmp*"))
    for file in folder.glob("[!.]*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        assert checkpoint["callbacks"]["Large"]["ballast"].shape == (2_000_000,)
    resumed = train("LinearEvaluation", inputs, folder, seed=2, ckpt_path=folder / "again.ckpt")
    torch.testing.assert_close(resumed, straight("LinearEvaluation")[0], rtol=0, atol=0)


def append(folder: Path) -> None:
    records = Records(folder, {})
    for i in range(0, 400, 4):
        records.append([{"index": j, "text": "x" * 20_000} for j in range(i, i + 4)])


def test_lines_cut_from_outside(tmp_path: Path) -> None:
    """Killed as bytes appear, which may be within a line."""
    file = tmp_path / "rows-00000.jsonl"
    for attempt in range(4):
        process, size = apart(append, tmp_path), 20_000 * (80 * attempt + draw(f"attempt {attempt}", 0, 80))
        while process.is_alive() and (not file.exists() or file.stat().st_size < size):
            time.sleep(0.0003)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    append(tmp_path)
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == list(range(400))
