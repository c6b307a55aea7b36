"""The runs that the tests of this folder compare: ``python worker.py ddp|fsdp FOLDER`` for two processes.

Lightning starts the second process by running this script again. Rank 0 saves the results to ``FOLDER/results.pt``.
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import two_processes
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from lit_kd.attacks import Protocol
from lit_kd.callbacks import CompileNetworks, ExportStudent, RobustnessReport
from lit_kd.datamodules import DigitsDataModule
from lit_kd.methods import DefensiveDistill, FineTune, LinearEvaluation, MCMIDistill, MCMITeacher
from lit_kd.methods.classifier import Classifier
from lit_kd.models import vision_model
from lit_kd.objectives import CRD, KD, VID, FitNet

METHODS = ("kd", "teacher", "vid", "fitnet", "crd", "defensive", "classifier", "linear", "fine_tune")
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
    if method == "classifier":
        return Classifier(student, 10, optimizer=sgd)
    if method in ("linear", "fine_tune"):
        return (LinearEvaluation if method == "linear" else FineTune)(student, 10, "stage2", optimizer=sgd)
    if method == "defensive":
        return DefensiveDistill(student, teacher, 10, optimizer=sgd)
    objective = {
        "kd": lambda: KD(),
        "vid": lambda: VID(**feature_layers("stage2")),
        "fitnet": lambda: FitNet(1.0, **feature_layers("stage2")),
        "crd": lambda: CRD(feature_dim=8, num_negatives=16, **feature_layers("fc:input")),
    }[method]()
    return MCMIDistill(student, teacher, 10, objective, optimizer=sgd)


class LastStep(Callback):
    """Keeps the state after a step: an evaluation would first copy the buffers of rank 0 to all ranks."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.state = {key: value.clone() for key, value in pl_module.state_dict().items()}


def run_ddp(devices: int) -> dict[str, dict[str, Any]]:
    """Two epochs of three steps of 16 images with every method, and a test; of the state, all ranks' copies.

    Two processes compile the networks of one of them.
    """
    results = {}
    for method in METHODS:
        data = DigitsDataModule(
            batch_size=16 // devices,
            samples_per_epoch=48,
            train_fraction=0.2,
            val_fraction=0.1,
            eval_batch_size=50,
            omit_classes=OMITTED if method == "kd" else None,
        )
        module = build(method)
        last_step = LastStep()
        compiled = [CompileNetworks(backend="aot_eager")] if method == "kd" and devices > 1 else []
        trainer = Trainer(
            **QUIET,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=2,
            callbacks=[last_step, *compiled],
            enable_checkpointing=False,
        )
        trainer.fit(module, data)
        metrics = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith("train/")}
        trainer.test(module, data, verbose=False)
        states = {key: trainer.strategy.all_gather(value) for key, value in last_step.state.items()}
        results[method] = {
            "states": {key: value.reshape(devices, -1) for key, value in states.items()},
            "metrics": {**metrics, **trainer.callback_metrics},
            "confusion": module.test_confusion.compute(),
        }
    results["robustness"] = attack(devices)
    return results


def attack(devices: int) -> dict[str, Any]:
    """The robustness report of an untrained network, as written by rank 0."""
    attacks = ("noise", "fgsm_naive", "pgd_naive", "pgd_margin", "apgd_dlr", "transfer", "cw")
    protocol = Protocol(attacks=attacks, steps=3, eps_grid=(1.0,), cw={"steps": 10, "search_steps": 2})
    torch.manual_seed(1)
    report = RobustnessReport(protocol, TinyNetwork(4), max_samples=45, batch_size=10, num_images=2)
    with tempfile.TemporaryDirectory() as folder:  # each rank has its own, as without a shared disk
        trainer = Trainer(
            **QUIET,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            callbacks=[report],
            default_root_dir=folder,
        )
        trainer.test(build("teacher"), DigitsDataModule(eval_batch_size=50), verbose=False)
        return json.loads(Path(folder, "robustness.json").read_text())["networks"] if trainer.is_global_zero else {}


class Watch(Callback):
    """Whether all parameters were sharded after each step. Each rank begins with a random state of its own."""

    def __init__(self) -> None:
        self.sharded: dict[str, list[bool]] = {"student": [], "teacher": []}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.manual_seed(trainer.global_rank)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        for name, flags in self.sharded.items():
            flags.append(all(isinstance(p, DTensor) for p in getattr(pl_module, name).parameters()))


def sharded_student(seed: int, folder: Path, distributed_checkpoint: bool) -> tuple[MCMIDistill, Trainer, Watch]:
    torch.manual_seed(0)
    teacher = vision_model("resnet8", 10)
    torch.manual_seed(seed)
    # Layer norm, as batch-norm statistics are each rank's own; dropout, as it needs each rank's random state.
    student = vision_model("test_convnext", 10, model_kwargs={"drop_rate": 0.5})
    objective = VID(student_layers=["backbone.stages.1"], teacher_layers=["backbone.layer1"])
    module = MCMIDistill(student, teacher, 10, objective, optimizer=sgd if distributed_checkpoint else adamw)
    watch = Watch()
    export = ExportStudent(str(folder / f"export_{seed}"))
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=distributed_checkpoint)
    trainer = Trainer(**QUIET, devices=2, strategy=strategy, max_epochs=1, callbacks=[watch, export, keep])
    return module, trainer, watch


def sharded_data() -> DigitsDataModule:
    return DigitsDataModule(batch_size=4, samples_per_epoch=32, val_fraction=0.1)


def run_fsdp(folder: Path, distributed_checkpoint: bool) -> dict[str, Any]:
    """Four steps straight, and the last two again from the checkpoint after the second."""
    results: dict[str, Any] = {}
    for run, seed, checkpoint in (("straight", 1, None), ("resumed", 2, folder / "step=2.ckpt")):
        module, trainer, watch = sharded_student(seed, folder, distributed_checkpoint)
        trainer.fit(module, sharded_data(), ckpt_path=checkpoint)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        results[run] = get_model_state_dict(module, options=options)
        results[f"{run} sharded"] = watch.sharded
    return results


def resume_from_lacking(folder: Path) -> str:
    """The answer to a one-file checkpoint without a key of the student."""
    module, trainer, _ = sharded_student(1, folder, distributed_checkpoint=False)
    content = torch.load(folder / "step=2.ckpt", weights_only=True)
    del content["state_dict"]["network.backbone.head.fc.weight"]
    path = folder / f"lacking_{torch.distributed.get_rank()}.ckpt"
    torch.save(content, path)
    try:
        trainer.fit(module, sharded_data(), ckpt_path=path)
    except ValueError as error:
        return str(error)
    return "none"


def run_fsdp_teacher(devices: int) -> Tensor:
    """The class centroids of a network, taken before the first step."""
    torch.manual_seed(0)
    module = MCMITeacher(vision_model("test_convnext", 10), 10, optimizer=sgd)
    strategy = ModelParallelStrategy(2, 1) if devices > 1 else "auto"
    trainer = Trainer(**QUIET, devices=devices, strategy=strategy, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, DigitsDataModule(batch_size=4, samples_per_epoch=8, train_fraction=0.1))
    return module.centroid_table


def run(kind: str, folder: Path) -> dict[Any, Any]:
    if kind == "ddp":
        return run_ddp(devices=2)
    results: dict[Any, Any] = {whole: run_fsdp(folder / str(whole), whole) for whole in (True, False)}
    results["lacking"] = resume_from_lacking(folder / "False")
    results["centroids"] = run_fsdp_teacher(devices=2)
    return results


if __name__ == "__main__":
    two_processes.main(run)
