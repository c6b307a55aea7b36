"""Text data modules in two processes: ``python text_data_worker.py ddp FOLDER``."""

from pathlib import Path
from typing import Any

import torch
import two_processes
from datamodules.text_files import tokenizer
from datamodules.text_recorder import Recorder, corpus, words
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from toy import quiet_trainer

from lit_kd.datamodules import GLUEDataModule, TextCorpusDataModule

SAMPLES = 37


class Gather(Recorder):
    """Keeps what all ranks see: for each step the samples of the global batch, and the length of each rank's."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[list[int]] = []
        self.lengths: list[list[int]] = []

    def on_train_batch_end(self, outputs: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.drawn.append(self.all_gather(batch["index"]).view(-1, len(batch["index"])).T.flatten().tolist())
        self.lengths.append(self.all_gather(torch.tensor(batch["input_ids"].shape[1])).view(-1).tolist())


def glue(path: str, folder: Path, batch_size: int) -> GLUEDataModule:
    rows = [f"{i}\t{text}\tb\tentailment" for i, text in enumerate(words(SAMPLES))]
    for name in ("train", "dev"):
        corpus(folder / "RTE", ["index\tsentence1\tsentence2\tlabel", *rows], f"{name}.tsv")
    return GLUEDataModule(task="rte", tokenizer=path, root=folder, batch_size=batch_size, eval_batch_size=5)


def stream(path: str, folder: Path, num_workers: int) -> TextCorpusDataModule:
    settings: dict[str, Any] = {"max_length": 9, "batch_size": 2, "streaming": True, "num_workers": num_workers}
    return TextCorpusDataModule(tokenizer=path, files=corpus(folder, words(23)), **settings)


def strategy(devices: int) -> dict[str, Any]:
    return {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}


def run(folder: Path, devices: int) -> dict[str, Any]:
    """Two epochs and a test of GLUE, and, in two processes, a stream that goes on in its middle."""
    path = tokenizer(folder / "tokenizer")
    module, data = Gather(), glue(path, folder, 8 // devices)
    trainer = quiet_trainer(**strategy(devices), max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(module, data)
    found: dict[str, Any] = {"drawn": module.drawn, "lengths": module.lengths}
    tested = Gather()
    trainer.test(tested, data, verbose=False)
    own = [index for of_batch, _ in tested.evaluated[0] for index in of_batch]
    every: list[Any] = [own]
    if devices > 1:
        every = [None] * devices
        torch.distributed.all_gather_object(every, own)
    found["tested"] = every
    if devices > 1:
        for workers in (0, 2):
            found[f"stream {workers}"] = resumed_stream(path, folder, workers)
    return found


def resumed_stream(path: str, folder: Path, num_workers: int) -> dict[str, list[list[int]]]:
    """What all ranks saw, straight and resumed behind the third step."""
    runs = {}
    keep = ModelCheckpoint(folder / f"stream{num_workers}", "{step}", every_n_train_steps=3, save_top_k=-1)
    for name, checkpoint in (("straight", None), ("resumed", folder / f"stream{num_workers}" / "step=3.ckpt")):
        module = Gather()
        callbacks: dict[str, Any] = {"callbacks": [keep], "enable_checkpointing": True} if checkpoint is None else {}
        trainer = quiet_trainer(**strategy(2), max_steps=7, **callbacks)
        trainer.fit(module, stream(path, folder, num_workers), ckpt_path=checkpoint)
        every: list[Any] = [None, None]
        torch.distributed.all_gather_object(every, module.seen)
        runs[name] = every
    return runs


if __name__ == "__main__":
    two_processes.main(lambda kind, folder: run(folder / "two", 2))
