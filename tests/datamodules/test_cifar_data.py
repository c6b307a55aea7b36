"""CIFAR-10 and CIFAR-100 in both formats."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tiny_files import CIFAR10_CLASSES, cifar_python, class_folders, write
from torchvision import datasets

from lit_kd.datamodules import CIFAR10DataModule, CIFAR100DataModule


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_class_folders(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"train{suffix}", class_folders(CIFAR10_CLASSES, per_class=3))
    write(tmp_path / f"test{suffix}", class_folders(CIFAR10_CLASSES, per_class=1))
    data = CIFAR10DataModule(root=tmp_path, batch_size=5)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert data.class_names == CIFAR10_CLASSES
    assert (len(data.sets["train"]), len(data.sets["test"])) == (30, 10)
    assert next(iter(data.train_dataloader()))["image"].shape == (5, 3, 32, 32)


@pytest.mark.parametrize(
    ("module", "dataset", "per_file"),
    [(CIFAR10DataModule, datasets.CIFAR10, 20), (CIFAR100DataModule, datasets.CIFAR100, 200)],
)
def test_python_version(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: type[CIFAR10DataModule],
    dataset: type[datasets.CIFAR10],
    per_file: int,
) -> None:
    pixels = cifar_python(tmp_path, dataset, monkeypatch, per_file)
    data = module(root=tmp_path, omit_classes=[0])
    data.setup("fit")
    assert len(data.class_names) == data.num_classes
    index, labels = data.train_samples()
    assert labels.unique().tolist() == list(range(1, data.num_classes))
    batch = data.on_after_batch_transfer(next(iter(data.train_eval_dataloader())), 0)
    assert torch.equal(batch["image"] * 255, torch.from_numpy(pixels[batch["index"]]).float())
    with open(tmp_path / dataset.base_folder / dataset.train_list[0][0], "ab") as file:
        file.write(b"damage")
    with pytest.raises(ValueError, match="fails torchvision's checksums: remove it and set download=True"):
        module(root=tmp_path).setup("fit")


def test_download_only_if_nothing_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    record = staticmethod(lambda root, download: calls.append((root, download)))
    monkeypatch.setattr(CIFAR10DataModule, "dataset_class", record)
    CIFAR10DataModule(root=tmp_path).prepare_data()
    assert calls == []
    CIFAR10DataModule(root=tmp_path, download=True).prepare_data()
    assert calls == [(str(tmp_path), True)]
    write(tmp_path / "train", class_folders(CIFAR10_CLASSES))
    CIFAR10DataModule(root=tmp_path, download=True).prepare_data()
    assert len(calls) == 1


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds neither train/, train.zip nor cifar-10-batches-py/"):
        CIFAR10DataModule(root=tmp_path).setup("fit")


def test_another_number_of_classes(tmp_path: Path) -> None:
    write(tmp_path / "train.zip", class_folders(["cat", "dog"]))
    with pytest.raises(ValueError, match="train.zip holds 2 classes where CIFAR10DataModule needs 10"):
        CIFAR10DataModule(root=tmp_path).setup("fit")


def test_real_data(real_data: Path) -> None:
    data = CIFAR10DataModule(root=real_data / "cifar10", val_fraction=0.1, train_fraction=0.5)
    start = time.perf_counter()
    data.setup("fit")
    data.setup("test")
    print(f"60,000 images decoded in {time.perf_counter() - start:.1f} s")
    train, test = data.sets["train"], data.sets["test"]
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert data.class_names == CIFAR10_CLASSES
    assert (len(data.train_index), len(data.val_index)) == (22_500, 5_000)
    pixels = train.pixels[::10].float() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(data.mean), atol=0.005)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(data.std), atol=0.005)
