"""A process that dies beside a training: a loader's worker, another rank."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from fault_toy import Moments, Poison, apart, end, newest, train
from lightning.pytorch import Callback, Trainer
from server_toy import free_port


class KillWorker(Callback):
    """Kills a worker of the training's loader in the second epoch."""

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.current_epoch == 1:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)


def test_loader(inputs: Path, straight: Any, tmp_path: Path) -> None:
    process = apart(with_worker, inputs, tmp_path, log=tmp_path / "log")
    assert end(process) == 1
    said, last = (tmp_path / "log").read_text(), newest(tmp_path)
    assert "RuntimeError: DataLoader worker (pid" in said and "lower data.num_workers or the batch size" in said
    assert f"go on with --ckpt_path '{last}'." in said
    resumed = train("MCMIDistill", inputs, tmp_path, seed=2, ckpt_path=last)
    torch.testing.assert_close(resumed, straight("MCMIDistill")[0], rtol=0, atol=0)


def with_worker(inputs: Path, folder: Path) -> None:
    train("MCMIDistill", inputs, folder, KillWorker(), num_workers=1)


def in_two_ranks(inputs: Path, folder: Path, callback: Callback, **settings: Any) -> None:
    end_of = train("MCMIDistill", inputs, folder, callback, strategy="ddp", devices=2, **settings)
    torch.save(end_of["weights"], folder / f"end{os.environ['LOCAL_RANK']}.pt")


def resumed_in_two_ranks(inputs: Path, folder: Path, callback: Callback) -> None:
    in_two_ranks(inputs, folder, callback, seed=2, ckpt_path="last")


def ranks(work: Any, inputs: Path, folder: Path, *callbacks: Callback) -> list[int]:
    """Exit codes of two ranks that nobody watches, by gloo."""
    folder.mkdir(exist_ok=True)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    processes = [
        apart(work, inputs, folder, callback, log=folder / f"log{rank}", LOCAL_RANK=str(rank), **where)
        for rank, callback in enumerate(callbacks)
    ]
    return [end(process) for process in processes]


def test_nan_on_one_rank(inputs: Path, tmp_path: Path) -> None:
    """The other one does not hang: its connection is gone."""
    assert ranks(in_two_ranks, inputs, tmp_path, Callback(), Poison(batch=2)) == [1, 1]
    said = [(tmp_path / f"log{rank}").read_text() for rank in (0, 1)]
    assert "FloatingPointError: The loss is not finite at step 2" in said[1]
    assert all(f"go on with --ckpt_path '{tmp_path / 'step=2.ckpt'}'." in one for one in said)


def test_killed_rank(inputs: Path, tmp_path: Path) -> None:
    assert ranks(in_two_ranks, inputs, tmp_path, Callback(), Moments(20)) == [1, -signal.SIGKILL]
    assert f"go on with --ckpt_path '{newest(tmp_path)}'." in (tmp_path / "log0").read_text()


def test_sigterm_to_one_rank(inputs: Path, tmp_path: Path) -> None:
    """All agree on the step, and go on to the bit."""
    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    stop = Moments(20, signal.SIGTERM)
    assert ranks(in_two_ranks, inputs, stopped, Callback(), stop) == [128 + signal.SIGTERM, 0]
    assert len(list(stopped.glob("last-sigterm-step=*.ckpt"))) == 1
    assert ranks(resumed_in_two_ranks, inputs, stopped, Callback(), Callback()) == [0, 0]
    assert ranks(in_two_ranks, inputs, straight, Callback(), Callback()) == [0, 0]
    for rank in (0, 1):
        ends = [torch.load(folder / f"end{rank}.pt", weights_only=True) for folder in (stopped, straight)]
        torch.testing.assert_close(*ends, rtol=0, atol=0)
