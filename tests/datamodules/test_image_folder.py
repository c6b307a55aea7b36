"""Folders of images, streamed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_files import class_folders, encode, write

from lit_kd.datamodules import ImageFolderDataModule

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "train", class_folders(CLASSES, per_class=4, size=40))
    write(tmp_path / "val", class_folders(CLASSES, per_class=2, size=48))
    return tmp_path


def batches(data: ImageFolderDataModule, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def test_splits(root: Path) -> None:
    data = ImageFolderDataModule(root=root, image_size=32, batch_size=5, val_fraction=0.25)
    assert data.num_classes == 3
    assert data.image_size == 32
    for stage in ("fit", "test"):
        data.setup(stage)
    assert data.class_names == CLASSES
    sizes = [len(data.sets["train"]), len(data.sets["test"]), len(data.train_index), len(data.val_index)]
    assert sizes == [12, 6, 9, 3]
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert batch["image"].shape == (6, 3, 32, 32)
    assert batch["label"].tolist() == [0, 0, 1, 1, 2, 2]
    assert batch["image"].dtype == torch.float32
    assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    shutil.copytree(root / "val", root / "test")
    write(root / "test", {"cat/more.png": encode(9, 40)})
    with_test = ImageFolderDataModule(root=root)
    with_test.setup("test")
    assert len(with_test.sets["test"]) == 7


def test_views_depend_on_seed_visit_and_index_alone(root: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    plain = batches(ImageFolderDataModule(root=root, image_size=32, batch_size=4, samples_per_epoch=24))
    assert torch.equal(torch.get_rng_state(), before)
    workers = batches(
        ImageFolderDataModule(root=root, image_size=32, batch_size=8, samples_per_epoch=24, num_workers=2)
    )
    images = [torch.cat([batch["image"] for batch in run]) for run in (plain, workers)]
    assert torch.equal(*images)
    assert len(images[0].flatten(1).unique(dim=0)) == 24  # the second visit gives other views
    other = batches(ImageFolderDataModule(root=root, image_size=32, batch_size=4, seed=1))
    assert not torch.equal(other[0]["image"], plain[0]["image"])


def test_without_augmentation(root: Path) -> None:
    data = ImageFolderDataModule(root=root, image_size=32, batch_size=12, augment=False)
    batch = batches(data)[0]
    evaluated = data.on_after_batch_transfer(next(iter(data.train_eval_dataloader())), 0)
    assert torch.equal(batch["image"], evaluated["image"][batch["index"]])


def test_different_classes(root: Path) -> None:
    (root / "val" / "cat").rename(root / "val" / "cow")
    with pytest.raises(ValueError, match=r"only the first has \['cat'\], only the second has \['cow'\]"):
        ImageFolderDataModule(root=root).setup("fit")


def test_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no folder train/"):
        _ = ImageFolderDataModule(root=tmp_path).num_classes
    write(tmp_path / "train", class_folders(CLASSES))
    with pytest.raises(FileNotFoundError, match="has no folder val/: it needs train/ and test/ or val/"):
        ImageFolderDataModule(root=tmp_path).setup("test")


def test_empty_class_and_bad_image(root: Path) -> None:
    for file in (root / "train" / "dog").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="without a training sample.*: dog"):
        ImageFolderDataModule(root=root).setup("fit")
    write(root / "train", {"owl/0.png": b"?"})
    with pytest.raises(ValueError, match="owl/0.png is not a readable image"):
        batches(ImageFolderDataModule(root=root, omit_classes=["dog"], samples_per_epoch=64))
    with pytest.raises(ValueError, match="image_size=0"):
        ImageFolderDataModule(root=root, image_size=0)
