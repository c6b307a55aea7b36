"""What an optimizer step is said to be made of is what training takes."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from minilm_toy import RandomTexts, encoder, saved
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, TensorDataset
from toy import ToyImages, fit, quiet_trainer, toy_network

from lit_kd.callbacks.effective_batch import batch_size, effective_batch
from lit_kd.datamodules import TextCorpusDataModule
from lit_kd.methods import Classifier, FineTune, MiniLMDistill

LINE = "samples an optimizer step"


def said(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = [record.getMessage() for record in caplog.records if " an optimizer step; " in record.getMessage()]
    return line


def test_images_accumulated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        fit(Classifier(toy_network(), 3), ToyImages(batch_size=10), accumulate_grad_batches=3)
    assert said(caplog) == f"batch 10 x 1 device x 3 accumulated = 30 {LINE}; learning rate 0.05"


def test_rates_of_groups(caplog: pytest.LogCaptureFixture) -> None:
    network = FineTune(toy_network(), 3, "1", backbone_lr=1e-3, head_lr=0.5, image_shape=(3, 8, 8))
    with caplog.at_level(logging.INFO):
        fit(network, ToyImages(batch_size=20))
    assert said(caplog) == f"batch 20 x 1 device x 1 accumulated = 20 {LINE}; learning rate 0.001, 0.5"


def test_a_warm_up_begins_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    module = MiniLMDistill(encoder(seed=1), encoder(), heads=4, warmup_steps=2)
    with caplog.at_level(logging.INFO):
        quiet_trainer(max_steps=3).fit(module, RandomTexts(batch_size=4))
    assert said(caplog).endswith("= 4 samples an optimizer step; learning rate 0.0003 (now 0)")


class Endless(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Any:
        yield from torch.rand(8, 3)


def loaders() -> dict[str, tuple[Any, str]]:
    data = TensorDataset(torch.rand(12, 3))
    plain = DataLoader(data, batch_size=4)
    return {
        "plain": (plain, "batch 4 x 2 devices x 1 accumulated = 8"),
        "batch sampler": (DataLoader(data, batch_sampler=BatchSampler(range(12), 3, True)), "batch 3 x 2 devices"),
        "own batches": (
            DataLoader(data, batch_sampler=[[0, 1], [2]]),
            "batch unknown x 2 devices x 1 accumulated = an",
        ),
        "single samples": (DataLoader(Endless(), batch_size=None), "batch unknown"),
        "iterable": (DataLoader(Endless(), batch_size=2), "batch 2 "),
        "dict": ({"a": plain, "b": DataLoader(data, batch_size=2)}, "batch (4 + 2) x 2 devices x 1 accumulated = 12 "),
        "list": ([plain, DataLoader(data, batch_size=None)], "batch unknown"),
        "combined": (CombinedLoader([plain, plain]).iterables, "batch (4 + 4) "),
        "no loader": ([torch.rand(2, 3)], "batch unknown"),
    }


@pytest.mark.parametrize("kind", loaders())
def test_loaders_of_others(kind: str) -> None:
    loader, start = loaders()[kind]
    assert effective_batch(loader, 2, 1).startswith(start)


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_say_their_rows(streaming: bool, tmp_path: Path) -> None:
    path = saved(encoder(), tmp_path)
    (tmp_path / "texts.txt").write_text("w1 w2 w3\n" * 40)
    data = TextCorpusDataModule(
        tokenizer=path, files=[str(tmp_path / "texts.txt")], max_length=8, batch_size=5, streaming=streaming
    )
    data.setup("fit")
    loader = data.train_dataloader()
    assert batch_size(loader) == 5 == len(next(iter(loader))["input_ids"])
