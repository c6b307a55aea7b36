"""The runs that ``test_probes.py`` compares: ``python probe_worker.py ddp|killed FOLDER``.

``ddp``: two processes; Lightning starts the second by running this script again, and rank 0 saves the results to
``FOLDER/results.pt``. ``killed``: a run that is killed in its second epoch and leaves its checkpoints in FOLDER.
"""

import os
import signal
import sys
from functools import partial
from typing import Any

import torch
import two_processes
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_kd.callbacks import CollapseMonitor, FewShotEpisodes, KNNProbe, OnlineLinearProbe
from lit_kd.datamodules import DigitsDataModule
from lit_kd.methods import Classifier
from lit_kd.models import vision_model

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def run(devices: int) -> dict[str, Any]:
    """Six steps of 32 digits beside a network that stands still, with all probes, and a test."""
    torch.manual_seed(0)
    network = vision_model("resnet8", 10)
    for norm in network.modules():
        norm.track_running_stats = False  # batch statistics in training are each rank's own, so none are kept
    module = Classifier(network.eval(), 10, optimizer=partial(torch.optim.SGD, lr=0.0))
    module.register_buffer("words", torch.rand(16, 64))
    data = DigitsDataModule(batch_size=32 // devices, samples_per_epoch=96, val_fraction=0.1, eval_batch_size=50)
    probe = OnlineLinearProbe("network")
    monitor = CollapseMonitor("network", word_network="network", word_levels={"backbone.layer3": "words"})
    trainer = Trainer(
        **QUIET,
        enable_checkpointing=False,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=2,
        callbacks=[probe, monitor, KNNProbe("network"), FewShotEpisodes("network", episodes=20)],
    )
    trainer.fit(module, data)
    metrics = dict(trainer.callback_metrics)
    trainer.test(module, data, verbose=False)
    metrics |= trainer.callback_metrics
    assert probe.head is not None
    heads = {key: trainer.strategy.all_gather(value) for key, value in probe.head.state_dict().items()}
    return {
        "heads": {key: value.reshape(devices, -1) for key, value in heads.items()},
        "metrics": {name: value for name, value in metrics.items() if "_network" in name or "words" in name},
    }


class Kill(Callback):
    """Ends the process in the second epoch, after its first step."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def resumable(seed: int, *callbacks: Callback, checkpoint: str | None = None) -> dict[str, Any]:
    """Two epochs of six batches and three steps, with a probe; how they ended."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    module = Classifier(vision_model("resnet8", 10, model_kwargs={"drop_rate": 0.5}), 10)
    online = OnlineLinearProbe("network")
    trainer = Trainer(
        **QUIET,
        max_epochs=2,
        accumulate_grad_batches=2,
        callbacks=[online, *callbacks],
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    )
    data = DigitsDataModule(batch_size=4, samples_per_epoch=24, train_fraction=0.03, val_fraction=0.02)
    trainer.fit(module, data, ckpt_path=checkpoint)
    return {"probe": online.state_dict(), "weights": dict(module.state_dict()), "step": trainer.global_step}


if __name__ == "__main__":
    if sys.argv[1] == "killed":
        torch.set_num_threads(1)
        keep = ModelCheckpoint(sys.argv[2], filename="{step}", every_n_train_steps=1, save_top_k=-1)
        resumable(1, Kill(), keep)
    else:
        two_processes.main(lambda kind, folder: run(devices=2))
