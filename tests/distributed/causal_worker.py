"""A causal network with an adapter in two processes: ``causal_worker.py ddp|fsdp FOLDER``."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import two_processes
from chat_toy import VOCABULARY, saved
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from text_toy import constant, loader
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from toy import quiet_trainer

from lit_kd.methods.base import Distill
from lit_kd.models import CompletionStates, causal_lm, completion_labels, save_exported


class AdapterOff(Distill):
    """Cross entropy on the completions, and a pull towards the network without its adapter."""

    def __init__(self, network: Any) -> None:
        super().__init__(partial(torch.optim.AdamW, lr=1e-2), constant)
        self.network = CompletionStates(network)
        self.switch = [network.disable_adapter] if hasattr(network, "disable_adapter") else []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        mask = batch["completion_mask"] = batch["completion_mask"].bool()
        batch.pop("index")
        labels = completion_labels(batch["input_ids"], mask)
        terms = {}
        if self.switch:
            with self.switch[0](), torch.no_grad():
                teacher = self.network(lambda rows, head: head(rows), **batch)

        def losses(rows: Tensor, head: nn.Module) -> Tensor:
            logits = head(rows)
            if self.switch:
                terms["pull"] = F.mse_loss(logits, teacher)
            terms["loss"] = F.cross_entropy(logits, labels)
            return torch.stack(list(terms.values())).sum()

        return self.network(losses, **batch)


class Rows(LightningDataModule):
    """32 rows of 3 tokens of a prompt and 4 of a completion."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        ids = torch.randint(5, VOCABULARY, (32, 7), generator=generator)
        mask = (torch.arange(7) > 2).long().expand(32, 7)
        self.columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return loader(self.columns, self.batch_size, train=True)


def run(kind: str, devices: int, folder: Path) -> dict[str, Any]:
    """Eight steps with an adapter and without one, the last two of the former again from a checkpoint."""
    results: dict[str, Any] = {}
    path = saved(folder / f"base{devices}_{torch.distributed.get_rank() if torch.distributed.is_initialized() else 0}")
    for name in ("adapter", "whole", "resumed"):
        torch.manual_seed(0)
        lora = None if name == "whole" else {"r": 4, "target_modules": "all-linear"}
        network = causal_lm(path, lora=lora, gradient_checkpointing=True)
        module = AdapterOff(network)
        sharded = ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False) if kind == "fsdp" else "ddp"
        keep = ModelCheckpoint(folder / name, filename="{step}", every_n_train_steps=6, save_top_k=-1)
        trainer = quiet_trainer(
            devices=devices,
            strategy=sharded if devices > 1 else "auto",
            max_epochs=2,
            callbacks=[keep],
            enable_checkpointing=True,
        )
        resume = folder / "adapter" / "step=6.ckpt" if name == "resumed" else None
        trainer.fit(module, Rows(8 // devices), ckpt_path=resume)
        assert kind == "ddp" or devices == 1 or all(isinstance(p, DTensor) for p in module.parameters())
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        results[name] = get_model_state_dict(module, options=options)
        if name == "adapter":
            save_exported(network, folder / f"export{devices}")
            saved_keys = torch.load(folder / "adapter" / "step=6.ckpt", weights_only=True)["state_dict"].keys()
            results["saved"] = sorted(saved_keys)
    return results


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run(kind, 2, folder))
