"""Rollouts and SSB in two processes: ``ssb_worker.py ddp|fsdp FOLDER``."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
import two_processes
from chat_toy import causal, saved
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import ModelParallelStrategy
from sharded import ShardedApart
from ssb_toy import as_if_accepted, as_if_answered
from text_toy import constant
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from toy import quiet_trainer

from lit_kd.datamodules import ArithmeticDataModule, HintsDataModule, SSBDataModule
from lit_kd.datamodules.loading import StreamSampler, build_loader, rank_and_world
from lit_kd.datamodules.text import TextSet
from lit_kd.language.chat import Example, collate
from lit_kd.language.engines import Sampling
from lit_kd.methods import LanguageModel, Refinement, Rollouts, SSBDistill, TeacherLogits
from lit_kd.models import causal_lm


class Pairs(TextSet):
    """Completions of 1 to 9 tokens behind two prompts."""

    def __init__(self) -> None:
        super().__init__(torch.ones(16))
        draw = torch.Generator().manual_seed(4)
        self.rows = [
            [torch.randint(5, 250, (n,), generator=draw).tolist() for n in (3, 6, 1 + 5 * i % 9)] for i in range(16)
        ]

    def __getitem__(self, key: Any) -> dict[str, Any]:
        chosen = [self.rows[i] for i in key["index"].tolist()]
        student = collate([Example(short, completion) for short, _, completion in chosen], 0)
        teacher = collate([Example(long, completion) for _, long, completion in chosen], 0)
        return {**student, **{f"teacher_{name}": value for name, value in teacher.items()}, "index": key["index"]}


class Data(LightningDataModule):
    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        pairs = Pairs()
        return build_loader(pairs, StreamSampler(pairs.index, self.batch_size, 16, 0), 0, 0, self.trainer)


def run(kind: str, devices: int, folder: Path) -> dict[str, Any]:
    """Four steps of two micro-batches with each teacher and with none, and under DDP the stages before."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    path = saved(folder / f"base{devices}_{rank}", causal(max_position_embeddings=512))
    results: dict[str, Any] = {}
    for teacher in ("adapter_off", "network", "none"):
        torch.manual_seed(0)
        network = causal_lm(path, lora={"r": 4, "target_modules": "all-linear"})
        other: Any = causal_lm(path) if teacher == "network" else teacher
        settings: dict[str, Any] = {"optimizer": partial(torch.optim.AdamW, lr=1e-2), "lr_scheduler": constant}
        module: Any = LanguageModel(network, chunk=5, **settings)
        if teacher != "none":
            module = SSBDistill(network, other, ce_weight=0.5, chunk=5, **settings)
        names = ["student", *["teacher"] * (teacher == "network")]
        sharded = ModelParallelStrategy(devices, 1, save_distributed_checkpoint=False) if kind == "fsdp" else "ddp"
        trainer = quiet_trainer(
            devices=devices,
            strategy=sharded if devices > 1 else "auto",
            max_epochs=2,
            accumulate_grad_batches=2,
            callbacks=[ShardedApart(*names)] if kind == "fsdp" and devices > 1 else [],
        )
        trainer.fit(module, Data(4 // devices))
        results[teacher] = get_model_state_dict(
            module, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
    if kind == "ddp":
        stages(path, devices, folder)
    return results


def stages(path: str, devices: int, folder: Path) -> None:
    """Rollouts of a few problems, their refinement, and the teacher's logits of what that wrote."""

    def predict(module: Any, data: Any) -> None:
        trainer = quiet_trainer(devices=devices, strategy="ddp" if devices > 1 else "auto")
        trainer.predict(module, data, return_predictions=False)
        trainer.strategy.barrier()

    def marked(where: Path, mark: Any) -> str:
        """A copy whose rows, in one file, are marked as if they had been solved."""
        copy = where.with_name(f"marked_{where.name}")
        if rank_and_world()[0] == 0:
            shutil.copytree(where, copy)
            mark(copy)
            (copy / "rows-00001.jsonl").unlink(missing_ok=True)
        if devices > 1:
            torch.distributed.barrier()
        return str(copy)

    rollouts, refined, logits = (folder / f"{name}{devices}" for name in ("rollouts", "refined", "logits"))
    drawn = Sampling(samples=2, max_new_tokens=8, seed=3)
    problems = ArithmeticDataModule(tokenizer=path, samples=7, predict_on="train", eval_batch_size=2)
    predict(Rollouts(str(rollouts), drawn, network=causal_lm(path)), problems)
    hints = HintsDataModule(
        rollouts=marked(rollouts, as_if_answered), template="{problem} {right} {wrong}", eval_batch_size=2
    )
    predict(Refinement(str(refined), Sampling(max_new_tokens=8), attempts=1, network=causal_lm(path)), hints)
    solutions = SSBDataModule(refined=marked(refined, as_if_accepted), tokenizer=path, eval_batch_size=2)
    predict(TeacherLogits(causal_lm(path), str(logits), top_k=4), solutions)


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run(kind, 2, folder))
