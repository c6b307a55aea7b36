"""The run that ``test_probes.py`` compares, in two processes."""

from functools import partial
from typing import Any

import torch
import two_processes
from lightning.pytorch import Trainer

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


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run(devices=2))
