"""Told to end, a training ends its step, leaves a checkpoint from which it goes on to the bit, and says so."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_toy import TRAININGS, Moments, apart, draw, end, train, write

SLURM = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NAME": "train",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(("name", "environment"), [*((name, {}) for name in TRAININGS), ("MCMIDistill", SLURM)])
def test_training(name: str, environment: dict[str, str], inputs: Path, straight: Any, tmp_path: Path) -> None:
    expected, moments = straight(name)
    stop = Moments(draw(name, 1, moments.last_step), signal.SIGTERM)
    process = apart(train, name, inputs, tmp_path, stop, log=tmp_path / "log", **environment)
    assert end(process) == 128 + signal.SIGTERM
    (checkpoint,) = tmp_path.glob("last-sigterm-step=*.ckpt")
    said = (tmp_path / "log").read_text()
    assert "Stopped by SIGTERM in epoch" in said and f"go on with --ckpt_path '{checkpoint}'." in said
    resumed = train(name, inputs, tmp_path, seed=2, ckpt_path="last")
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)


def test_accumulated_gradients_are_not_cut(inputs: Path, tmp_path: Path) -> None:
    """Six batches an epoch, four of them a step."""
    settings: dict[str, Any] = {"accumulate_grad_batches": 4}
    moments = Moments()
    expected = train("MCMIDistill", inputs, tmp_path / "straight", moments, **settings)
    moment = draw("accumulation", 2, moments.last_step)  # 1: before training, when there is nothing to keep yet
    folder = tmp_path / "stopped"
    assert end(apart(accumulate, inputs, folder, moment)) == 128 + signal.SIGTERM
    resumed = train("MCMIDistill", inputs, folder, seed=2, ckpt_path="last", **settings)
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)


def accumulate(inputs: Path, folder: Path, moment: int) -> None:
    train("MCMIDistill", inputs, folder, Moments(moment, signal.SIGTERM), accumulate_grad_batches=4)


def test_slurm_requeues_between_two_steps(
    inputs: Path, straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGUSR1, ``#SBATCH --signal=USR1@90``: Lightning writes hpc_ckpt_1.ckpt, and a new start goes on from it."""
    scontrol, calls = tmp_path / "bin/scontrol", tmp_path / "calls"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    expected, moments = straight("MCMIDistill")
    stop = Moments(draw("requeue", moments.first_save, moments.last_step - 10), signal.SIGUSR1)
    path = f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}"
    process = apart(in_folder, tmp_path, "MCMIDistill", inputs, tmp_path / "kept", stop, PATH=path, **SLURM)
    assert end(process) == 0 and calls.read_text() == "requeue 12\n"  # it trains on until the job is ended
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    resumed = train("MCMIDistill", inputs, tmp_path / "kept", seed=2, default_root_dir=tmp_path)
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
    assert torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)["global_step"] < 12


def in_folder(folder: Path, *arguments: Any) -> None:
    """Lightning writes to the working directory."""
    os.chdir(folder)
    train(*arguments)


def test_prediction(inputs: Path, tmp_path: Path) -> None:
    """Ends with the batch; the same command goes on."""
    write("Rollouts", inputs, tmp_path / "straight")
    stopped = apart(write, "Rollouts", inputs, tmp_path / "stopped", Moments(5, signal.SIGTERM))
    assert end(stopped) == 128 + signal.SIGTERM
    rows = tmp_path / "stopped/rows-00000.jsonl"
    assert 0 < len(rows.read_bytes().splitlines()) < 8
    write("Rollouts", inputs, tmp_path / "stopped")
    assert rows.read_bytes() == (tmp_path / "straight/rows-00000.jsonl").read_bytes()
