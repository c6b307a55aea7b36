"""The runs that the tests of this folder compare: ``python worker.py ddp|fsdp FOLDER`` for two processes.

Lightning starts the second process by running this script again. Rank 0 saves the results to ``FOLDER/results.pt``.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from lit_kd.callbacks import ExportStudent
from lit_kd.datamodules import DigitsDataModule
from lit_kd.methods import MCMIDistill, MCMITeacher
from lit_kd.methods.classifier import Classifier
from lit_kd.models import vision_model
from lit_kd.objectives import CRD, KD, VID, FitNet

OMITTED = [3, 7]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
adamw = partial(torch.optim.AdamW, lr=1e-3)


class TinyNetwork(nn.Module):
    """Without batch norm: its statistics are those of one process (SyncBatchNorm refuses CPU tensors)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, width, 3, stride=4, padding=1), nn.ReLU())  # 8x8
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())  # 4x4
        self.fc = nn.Linear(2 * width * 16, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc(self.stage2(self.stage1(image)).flatten(1))


def feature_layers(path: str) -> dict[str, list[str]]:
    return {"student_layers": [path], "teacher_layers": [path]}


def build(method: str) -> Classifier:
    torch.manual_seed(0)
    student, teacher = TinyNetwork(4), TinyNetwork(6)
    if method == "teacher":
        return MCMITeacher(teacher, 10, centroids="epoch", optimizer=sgd)
    objective = {
        "kd": lambda: KD(),
        "vid": lambda: VID(**feature_layers("stage2")),
        "fitnet": lambda: FitNet(1.0, **feature_layers("stage2")),
        "crd": lambda: CRD(feature_dim=8, num_negatives=16, **feature_layers("fc:input")),
    }[method]()
    return MCMIDistill(student, teacher, 10, objective, optimizer=sgd)


def run_ddp(devices: int) -> dict[str, dict[str, Any]]:
    """Two epochs of three steps of 16 images with every method, and a test; of the state, all ranks' copies."""
    results = {}
    for method in ("kd", "teacher", "vid", "fitnet", "crd"):
        data = DigitsDataModule(
            batch_size=16 // devices,
            samples_per_epoch=48,
            train_fraction=0.2,
            val_fraction=0.1,
            eval_batch_size=50,
            omit_classes=OMITTED if method == "kd" else None,
        )
        module = build(method)
        trainer = Trainer(
            **QUIET,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=2,
            enable_checkpointing=False,
        )
        trainer.fit(module, data)
        metrics = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith("train/")}
        trainer.test(module, data, verbose=False)
        states = {key: trainer.strategy.all_gather(value) for key, value in module.state_dict().items()}
        results[method] = {
            "states": {key: value.reshape(devices, -1) for key, value in states.items()},
            "metrics": {**metrics, **trainer.callback_metrics},
            "confusion": module.test_confusion.compute(),
        }
    return results


class Watch(Callback):
    """Whether all parameters were sharded after each step."""

    def __init__(self) -> None:
        self.sharded: dict[str, list[bool]] = {"student": [], "teacher": []}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        for name, flags in self.sharded.items():
            flags.append(all(isinstance(p, DTensor) for p in getattr(pl_module, name).parameters()))


def run_fsdp(folder: Path, distributed_checkpoint: bool) -> dict[str, Any]:
    """Four steps straight, and the last two again from the checkpoint after the second."""
    results: dict[str, Any] = {}
    for run, checkpoint in (("straight", None), ("resumed", folder / "step=2.ckpt")):
        torch.manual_seed(0 if run == "straight" else 1)
        student = vision_model("test_convnext", 10)  # layer norm: batch-norm statistics are each rank's own
        torch.manual_seed(0)
        layers = {"student_layers": ["backbone.stages.1"], "teacher_layers": ["backbone.layer1"]}
        module = MCMIDistill(
            student, vision_model("resnet8", 10), 10, VID(**layers), optimizer=sgd if distributed_checkpoint else adamw
        )
        watch = Watch()
        trainer = Trainer(
            **QUIET,
            devices=2,
            strategy=ModelParallelStrategy(2, 1, save_distributed_checkpoint=distributed_checkpoint),
            max_epochs=1,
            callbacks=[
                watch,
                ExportStudent(str(folder / run)),
                ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1),
            ],
        )
        data = DigitsDataModule(batch_size=4, samples_per_epoch=32, val_fraction=0.1)
        trainer.fit(module, data, ckpt_path=checkpoint)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        results[run] = get_model_state_dict(module, options=options)
        results[f"{run} sharded"] = watch.sharded
    return results


def main(kind: str, folder: Path) -> None:
    if kind == "ddp":
        results: dict[Any, Any] = run_ddp(devices=2)
    else:
        results = {distributed: run_fsdp(folder / str(distributed), distributed) for distributed in (True, False)}
    if torch.distributed.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
