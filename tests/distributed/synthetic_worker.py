"""Fine-tuning on packed chats in two processes: ``synthetic_worker.py ddp|fsdp FOLDER``."""

import json
from pathlib import Path
from typing import Any

import torch
import two_processes
from chat_toy import causal, saved
from lightning.pytorch.strategies import ModelParallelStrategy
from sharded import ShardedApart
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from toy import quiet_trainer

from lit_kd.callbacks import CompileNetworks
from lit_kd.datamodules import ChatDataModule
from lit_kd.methods import SyntheticDistill
from lit_kd.models import causal_lm


def chats(file: Path) -> str:
    """Chats of all lengths, one of two turns."""
    rows = []
    for i in range(24):
        words = [("system", "s"), ("user", f"{i}?"), ("assistant", "ab" * (1 + 7 * i % 11))]
        words += [("user", "more"), ("assistant", "c" * i)] if i == 5 else []
        rows.append({"messages": [{"role": role, "content": text} for role, text in words]})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def run(kind: str, devices: int, folder: Path) -> dict[str, Any]:
    """Steps of two micro-batches of packed rows: an adapter on the rows alone, and a whole network beside a teacher."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    path = saved(folder / f"base{devices}_{rank}", causal(max_position_embeddings=512))
    file = chats(folder / f"chats{devices}_{rank}.jsonl")
    results: dict[str, Any] = {}
    for name in ("adapter", "whole"):
        torch.manual_seed(0)
        lora = {"r": 4, "target_modules": "all-linear"} if name == "adapter" else None
        teacher = causal(seed=3, max_position_embeddings=512) if name == "whole" else None
        if teacher is not None:
            teacher.tokenizer_path = path
        module = SyntheticDistill(causal_lm(path, lora=lora), teacher, kd_weight=float(name == "whole"), lr=1e-2)
        names = ["student", *["teacher"] * (teacher is not None)]
        sharded = ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False) if kind == "fsdp" else "ddp"
        trainer = quiet_trainer(
            devices=devices,
            strategy=sharded if devices > 1 else "auto",
            max_epochs=2,
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            callbacks=[CompileNetworks(backend="eager"), ShardedApart(*names)]
            if kind == "fsdp" and devices > 1
            else [],
        )
        trainer.fit(
            module,
            ChatDataModule(chats=file, tokenizer=path, packing=True, max_length=130, batch_size=2 // devices),
        )
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        results[name] = get_model_state_dict(module, options=options)
    return results


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run(kind, 2, folder))
