"""Fine-tuning of text encoders in two processes: ``python text_worker.py ddp|fsdp FOLDER``."""

import json
import tempfile
from pathlib import Path
from typing import Any

import two_processes
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from sharded import ShardedApart
from text_toy import TinyGLUE, TinySQuAD, classifier, reader, sgd, weights
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from toy import quiet_trainer

from lit_kd.callbacks import AnswersWriter
from lit_kd.methods import QuestionAnswering, SequenceClassifier


def runs(devices: int) -> dict[str, tuple[LightningModule, Any]]:
    """By name: a module, and data whose global batch is the same whatever the number of devices.

    Not AdamW: it makes noise of the gradient of key biases, which is 0 but for rounding, into steps.
    """
    batch_size, found = 16 // devices, {}
    for task in ("mrpc", "cola", "stsb", "mnli"):
        data = TinyGLUE(task, batch_size=batch_size)
        teacher = classifier(data.num_labels, seed=1) if task == "stsb" else None
        network = classifier(data.num_labels)
        found[task] = (SequenceClassifier(network, data.num_labels, task, teacher, optimizer=sgd), data)
    found["squad"] = (QuestionAnswering(reader(), reader(1), optimizer=sgd), TinySQuAD(batch_size=batch_size))
    return found


def run_ddp(devices: int) -> dict[str, Any]:
    """Two epochs with every module: metrics, weights of all ranks, and the answers that rank 0 wrote."""
    results = {}
    for name, (module, data) in runs(devices).items():
        trainer = quiet_trainer(devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=2)
        trainer.fit(module, data)
        metrics = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        trainer.test(module, data, verbose=False)
        states = {key: trainer.strategy.all_gather(value) for key, value in weights(module).items()}
        results[name] = {
            "metrics": {**metrics, **trainer.callback_metrics},
            "weights": {key: value.view(devices, *weights(module)[key].shape) for key, value in states.items()},
        }
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            callbacks=[AnswersWriter()],
            default_root_dir=folder,
        )
        trainer.predict(module, data, return_predictions=False)
        written = Path(folder, "predictions.json")
        results["answers"] = json.loads(written.read_text()) if trainer.is_global_zero else {}
    return results


def run_fsdp(devices: int) -> dict[str, Any]:
    """Two epochs under FSDP2: metrics and whole weights."""
    results = {}
    for name, (module, data) in runs(devices).items():
        if name not in ("stsb", "squad"):  # those with a teacher
            continue
        strategy: Any = ModelParallelStrategy(devices, 1) if devices > 1 else "auto"
        trainer = Trainer(
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
            max_epochs=2,
            callbacks=[ShardedApart("network", "teacher")] if devices > 1 else [],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        metrics = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        results[name] = {"metrics": metrics, "weights": get_model_state_dict(module, options=options)}
    return results


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run_ddp(2) if kind == "ddp" else run_fsdp(2))
