"""A disk that fills up while something is written: what was there stays, nothing half stands under its name."""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
from chat_toy import causal
from fault_toy import Moments, apart, end, newest, train
from safetensors.torch import save_file

from lit_kd.callbacks.safe_stop import WholeCheckpoints
from lit_kd.files import replacing
from lit_kd.language.records import Records
from lit_kd.language.teacher_files import write_logprobs
from lit_kd.models import save_exported, vision_model


class Fills(Moments):
    """No file may grow beyond `limit` bytes once the second step is saved."""

    def on_save_checkpoint(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def test_training(inputs: Path, straight: Any, tmp_path: Path) -> None:
    process = apart(train, "MCMIDistill", inputs, tmp_path, Fills(), log=tmp_path / "log")
    assert end(process) == 1
    said, last = (tmp_path / "log").read_text(), newest(tmp_path)
    assert last == tmp_path / "step=2.ckpt"
    assert f"No space is left to write step=3.ckpt: free some in {tmp_path} and start again" in said
    assert f"Stopped by OSError in epoch 0 after step 3. The last checkpoint is {last}: go on with --ckpt_path" in said
    assert not list(tmp_path.glob(".*"))
    resumed = train("MCMIDistill", inputs, tmp_path, seed=2, ckpt_path=last)
    torch.testing.assert_close(resumed, straight("MCMIDistill")[0], rtol=0, atol=0)


def text(folder: Path, size: int) -> None:
    with replacing(folder / "a.json") as temporary:
        temporary.write_text("x" * 60 * size)


def tensors(folder: Path, size: int) -> None:
    with replacing(folder / "a.safetensors") as temporary:
        save_file({"a": torch.rand(20 * size)}, temporary)


def picture(folder: Path, size: int) -> None:
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    axes.imshow(torch.rand(8, 8))
    with replacing(folder / "a.png") as temporary:
        figure.savefig(temporary, dpi=size // 20)


def checkpoint(folder: Path, size: int) -> None:
    WholeCheckpoints().save_checkpoint({"a": torch.rand(20 * size)}, str(folder / "a.ckpt"))


def records(folder: Path, size: int) -> None:
    Records(folder, {}).append([{"index": size, "text": "x" * 60 * size}])


def logits(folder: Path, size: int) -> None:
    write_logprobs(folder, 1, torch.rand(size, 10), torch.zeros(size, 10))


def export(folder: Path, size: int) -> None:
    save_exported(vision_model("resnet8", size), folder)


def export_text(folder: Path, size: int) -> None:
    save_exported(causal(vocab_size=3 * size), folder)


def limited(write: Callable[[Path, int], None], folder: Path, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    write(folder, 2000)


@pytest.mark.parametrize("write", [text, tensors, picture, checkpoint, records, logits, export, export_text])
def test_files(write: Callable[[Path, int], None], tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write(folder, 1000)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    limit = max(map(len, before.values())) + 1000
    assert end(apart(limited, write, folder, limit, log=tmp_path / "log")) == 1
    assert f"free some in {folder} and start again" in (tmp_path / "log").read_text()
    if write is records:  # appends: the half line is cut off as the folder is opened
        assert Records(folder, {}).done == {1000}
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    write(folder, 2000)
    assert max(os.path.getsize(file) for file in folder.iterdir()) > limit
