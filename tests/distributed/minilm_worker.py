"""MiniLM in two processes: ``python minilm_worker.py ddp|fsdp FOLDER``."""

import torch
import two_processes
from lightning.pytorch.strategies import ModelParallelStrategy
from minilm_toy import RandomTexts, encoder
from sharded import ShardedApart
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from toy import quiet_trainer

from lit_kd.methods import MiniLMDistill


def run(kind: str, devices: int) -> dict[str, dict[str, Tensor]]:
    """Eight steps of 8 texts by each preset, then the validation loss."""
    results = {}
    for relations in ("minilm", "minilm_v2"):
        student = encoder(seed=1, hidden_size=12, num_hidden_layers=2)
        module = MiniLMDistill(student, encoder(), relations, heads=4, warmup_steps=2, lr=1e-3)  # type: ignore[arg-type]
        sharded = ModelParallelStrategy(devices, 1) if kind == "fsdp" else "ddp"
        trainer = quiet_trainer(
            devices=devices,
            strategy=sharded if devices > 1 else "auto",
            max_epochs=2,
            callbacks=[ShardedApart("student", "teacher")] if kind == "fsdp" and devices > 1 else [],
        )
        data = RandomTexts(batch_size=8 // devices)
        trainer.fit(module, data)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        results[relations] = get_model_state_dict(module, options=options)
        (numbers,) = trainer.validate(module, data, verbose=False)
        results[relations]["val/loss"] = torch.tensor(numbers["val/loss"])
    return results


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run(kind, 2))
