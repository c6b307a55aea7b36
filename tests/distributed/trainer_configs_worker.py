"""The trainer configs on two processes, which torchrun has started: ``trainer_configs_worker.py FOLDER``."""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything

from lit_kd.cli import LitKDCLI

CONFIGS = Path(__file__).parents[2] / "configs"
ON_CPU = {  # by config: two devices on two nodes, and batch norms of each process (their sum needs a GPU)
    "ddp": ["--trainer.sync_batchnorm=false"],
    "ddp8": ["--trainer.sync_batchnorm=false"],
    "multi_node": ["--trainer.sync_batchnorm=false"],
    "fsdp2": [],
}


def fit(name: str, folder: Path) -> list[Any]:
    """Two epochs of a step on digits; all weights of rank 0, whether those of both ranks agree, and what was said."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lightning.pytorch").addHandler(handler)
    words = ["-c", str(CONFIGS / "mcmi/digits_teacher.yaml"), "-c", str(CONFIGS / f"trainer/{name}.yaml")]
    words += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=2", *ON_CPU[name]]
    words += ["--trainer.max_epochs=2", "--trainer.limit_train_batches=1", "--trainer.enable_progress_bar=false"]
    words += [f"--trainer.logger.save_dir={folder / name}"]
    command = LitKDCLI(words, run=False)
    command.trainer.fit(command.model, command.datamodule)
    logging.getLogger("lightning.pytorch").removeHandler(handler)
    weights = torch.cat([parameter.detach().flatten() for parameter in whole(command.model)])
    both = command.trainer.strategy.all_gather(weights)
    steps = [line for line in said if " an optimizer step; " in line]
    return [bool(torch.equal(both[0], both[1])), command.trainer.world_size, command.trainer.num_nodes, steps]


def whole(module: Any) -> list[torch.Tensor]:
    return [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.parameters()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    seed_everything(0)
    found = {name: fit(name, Path(sys.argv[1])) for name in ON_CPU}
    torch.save(found, Path(sys.argv[1]) / f"results{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
