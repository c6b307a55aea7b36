"""MGSR in two processes: ``mgsr_worker.py ddp|fsdp FOLDER``."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import two_processes
from chat_toy import chat_tokenizer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from mgsr_toy import Dialogues, network
from sharded import ShardedApart
from text_toy import constant
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from toy import quiet_trainer

from lit_kd.datamodules.loading import rank_and_world
from lit_kd.language.chunkers import NgramChunker
from lit_kd.language.engines import Sampling
from lit_kd.losses import DACKL, ForwardKL
from lit_kd.methods import SCRG, MGSRDistill, OnPolicy, Replay

FREE = Sampling(max_new_tokens=8)


small = partial(DACKL, top_k=8, hidden=4)


class Watched(Replay):
    """Keeps what each step did."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(sampling=FREE, max_length=32, **settings)
        self.seen: list[dict[str, float]] = []

    def rows(self, *arguments: Any) -> Any:
        found = super().rows(*arguments)
        self.seen.append(self.numbers())
        return found


class Empty(Dialogues):
    """The second process' texts have no completion."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if rank_and_world()[0] == 1:
            batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])
        return batch


def run(kind: str, devices: int, folder: Path) -> dict[str, Any]:
    """Trained weights; under DDP also branches and states of the sources of both processes."""
    rank, _ = rank_and_world()
    path = chat_tokenizer(folder / f"tokenizer{devices}_{rank}")
    results: dict[str, Any] = {}

    def fit(source: Any, divergence: Any, data: Any, checkpoint: Any = None, **settings: Any) -> Any:
        torch.manual_seed(0)
        module = MGSRDistill(
            network(path, 1), network(path, 2), source, divergence(), NgramChunker(2), span_weight=1.0,
            optimizer=partial(torch.optim.SGD, lr=0.1), lr_scheduler=constant, chunk=5,
        )  # fmt: skip
        sharded = ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False) if kind == "fsdp" else "ddp"
        strategy = sharded if devices > 1 else "auto"
        if kind == "fsdp" and devices > 1:
            settings["callbacks"] = [ShardedApart("student", "teacher")]
        trainer = quiet_trainer(devices=devices, strategy=strategy, **{"max_epochs": 1, **settings})
        trainer.fit(module, data, ckpt_path=checkpoint)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(module, options=options), trainer

    size = 4 // devices
    if kind == "fsdp":
        results["fixed"], _ = fit(None, ForwardKL, Dialogues(size, held_out=6), accumulate_grad_batches=2)
        for source, divergence in ((OnPolicy(), ForwardKL), (None, DACKL)) if devices > 1 else ():
            try:
                fit(source, divergence, Dialogues(size))
            except ValueError as error:
                results.setdefault("refused", []).append(str(error))
        return results
    source = SCRG(OnPolicy(0.6, FREE, 32))
    results["written"], _ = fit(source, small, Dialogues(size, held_out=6), accumulate_grad_batches=2)
    if devices > 1:
        replay = Watched(initial_phi=0.7, capacity=4)
        keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
        settings: Any = {"max_epochs": 3, "callbacks": [keep], "enable_checkpointing": True}
        results["replayed"], _ = fit(replay, ForwardKL, Dialogues(size, held_out=6), **settings)
        again = Watched(initial_phi=0.0, capacity=4)
        where = folder / "step=6.ckpt"
        results["resumed"], _ = fit(again, ForwardKL, Dialogues(size, held_out=6), where, **settings)
        seen: list[Any] = [None, None]
        dist.all_gather_object(seen, (replay.seen, again.seen))
        results["seen"] = seen
        results["saved"] = torch.load(where, weights_only=True)["source"]
        for empty in (OnPolicy(0.5, FREE, 32), None):
            _, trainer = fit(empty, small, Empty(size, held_out=6))
            results["steps"] = trainer.global_step
    return results


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run(kind, 2, folder))
