"""scikit-learn's digits."""

from __future__ import annotations

import sys

import pytest
import torch

from lit_kd.datamodules import DigitsDataModule


def test_split_is_balanced_and_independent_of_the_seed() -> None:
    first, second = DigitsDataModule(), DigitsDataModule(seed=5)
    for data in (first, second):
        data.setup("fit")
        data.setup("test")
    assert first.num_classes == 10
    assert first.class_names == [str(i) for i in range(10)]
    train, test = first.sets["train"], first.sets["test"]
    assert len(train) + len(test) == 1797
    shares = test.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert (shares - 0.2).abs().max() < 0.01
    assert torch.equal(test.pixels, second.sets["test"].pixels)


def test_batches() -> None:
    data = DigitsDataModule(batch_size=16)
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"].shape == (16, 3, 32, 32)
    assert torch.equal(batch["image"][:, 0], batch["image"][:, 2])
    pixels = data.sets["train"].pixels / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(data.mean), atol=0.005)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(data.std), atol=0.005)


def test_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'lit-kd\[digits\]'"):
        DigitsDataModule().setup("fit")
