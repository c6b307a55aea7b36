"""OBoW in two processes: ``python obow_worker.py ddp|fsdp FOLDER``."""

import os
from pathlib import Path
from typing import Any

import torch
import two_processes
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from obow_toy import CropImages, module, network, state
from sharded import ShardedApart
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from toy import quiet_trainer

NAMES = ("soft", "accumulated", "norm", "drawn")


class DrawnPlaces(CropImages):
    """Without visit and index, so that each rank draws the places of its words."""

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return {key: value for key, value in batch.items() if key not in ("visit", "index")}


class Ignored(Callback):
    """What DDP neither reduces nor broadcasts."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.names = sorted(getattr(trainer.model, "parameters_to_ignore", ()))


def run_ddp(devices: int) -> dict[str, Any]:
    """Eight steps of 16 images; all ranks' states after the last."""
    results: dict[str, Any] = {}
    rank = int(os.environ.get("LOCAL_RANK", 0))
    for name in NAMES:
        torch.manual_seed(rank)  # ranks begin with other weights and words: rank 0's must win
        accumulate = 2 if name == "accumulated" else 1
        obow = module(network(norm=name == "norm"), num_words=48)
        data = (DrawnPlaces if name == "drawn" else CropImages)(batch_size=16 // devices // accumulate)
        ignored = Ignored()
        trainer = quiet_trainer(
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            max_epochs=2,
            accumulate_grad_batches=accumulate,
            callbacks=[ignored],
        )
        trainer.fit(obow, data)
        states = {key: trainer.strategy.all_gather(value) for key, value in state(obow).items()}
        results[name] = {
            "states": {key: value.view(devices, *state(obow)[key].shape) for key, value in states.items()},
            "steps": trainer.global_step,
            "total": obow.teacher.total_steps,
            "ignored": ignored.names,
        }
    return results


def run_fsdp(folder: Path, devices: int) -> dict[str, dict[str, Tensor]]:
    """Eight steps straight, and the last two again from the checkpoint after the sixth, under FSDP2."""
    results = {}
    for run, seed, checkpoint in (("straight", 0, None), ("resumed", 3, folder / "step=6.ckpt")):
        torch.manual_seed(seed)
        obow = module(num_words=48)
        keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=6, save_top_k=-1)
        strategy = ModelParallelStrategy(devices, 1) if devices > 1 else "auto"
        trainer = Trainer(
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
            max_epochs=2,
            callbacks=[keep, *[ShardedApart("student", "teacher")] * (devices > 1)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(obow, CropImages(batch_size=16 // devices), ckpt_path=checkpoint)
        results[run] = get_model_state_dict(obow, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return results


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run_ddp(2) if kind == "ddp" else run_fsdp(folder, 2))
