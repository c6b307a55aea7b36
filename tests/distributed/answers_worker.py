"""Scores of answers in two processes: ``answers_worker.py ddp FOLDER``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import two_processes
from lightning.pytorch import LightningDataModule
from toy import quiet_trainer

from lit_kd.datamodules.loading import ShardSampler, build_loader
from lit_kd.datamodules.problems import ColumnSet
from lit_kd.language.engines import Completion, Engine, Sampling
from lit_kd.methods import LanguageModel

KINDS: dict[str, list[Any]] = {
    "number": ["1", "2", "3", "4", "5", "6", "7"],
    "label": ["yes", "no", "no", "yes", "yes", "no", "no"],
    "overlap": [["one cat", "a cat"], "two cats", "the dog", "four", "five of six", "six", "seven"],
    "summary": ["Ana Diaz left.", "", "Bob", "four", "In Rome Ana met Bob.", "six", "seven"],
}


class Echo(Engine):
    """Gives each gold back as it is, wrongly, or in other words."""

    def generate(
        self, prompts: Sequence[Any], sampling: Sampling, keys: Any = None, budgets: Any = None
    ) -> list[list[Completion]]:
        forms = ("#### {}", "{}", "It is {}, maybe")
        texts = [forms[key % 3].format(prompt) for prompt, key in zip(prompts, keys, strict=True)]
        return [[Completion(text, "stop", None, 1, len(text))] for text in texts]

    def describe(self) -> dict[str, Any]:
        return {"kind": "echo"}


class Questions(LightningDataModule):
    def __init__(self, gold: list[Any]) -> None:
        super().__init__()
        self.gold = gold

    def test_dataloader(self) -> Any:
        prompts = [one if isinstance(one, str) else one[-1] for one in self.gold]
        questions = ColumnSet({"prompt": prompts, "gold": self.gold}, torch.arange(len(prompts)))
        return build_loader(questions, ShardSampler(questions.index, 2), 0, 0, self.trainer)

    val_dataloader = test_dataloader


def run(kind: str, devices: int, folder: Path) -> dict[str, Any]:
    """Seven questions of each kind: three on one device, four on the other."""
    results = {}
    for name, gold in KINDS.items():
        trainer = quiet_trainer(devices=devices, strategy="ddp" if devices > 1 else "auto")
        module: Any = LanguageModel(engine=Echo(), kind=name, labels=("yes", "no"))  # type: ignore[arg-type]
        (test,) = trainer.test(module, datamodule=Questions(gold), verbose=False)
        (val,) = trainer.validate(module, datamodule=Questions(gold), verbose=False)
        results[name] = {**test, **val}
    return results


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run(kind, 2, folder))
