"""Tiny ImageNet in its official layout."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tiny_files
import torch
from tiny_files import tiny_imagenet, write

from lit_kd.datamodules import TinyImageNetDataModule
from lit_kd.models.pixels import imagenet_names


@pytest.mark.parametrize(
    ("name", "prefix"), [("tiny.zip", "tiny-imagenet-200/"), ("tiny", "tiny-imagenet-200/"), ("tiny", "")]
)
def test_official_layout(tmp_path: Path, name: str, prefix: str) -> None:
    data = TinyImageNetDataModule(root=write(tmp_path / name, tiny_imagenet(prefix)), batch_size=4)
    assert data.num_classes == 3  # before setup
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert data.class_names == ["crane, bird", "crane, machine", "goldfish"]  # n01, n02, n03
    train, test = data.sets["train"], data.sets["test"]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [2, 0, 1]  # val_0 is of n03, the first line of wnids.txt
    grey = train.pixels[0]
    assert torch.equal(grey[0], grey[1])
    assert not torch.equal(train.pixels[1][0], train.pixels[1][1])
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["image"].shape == (4, 3, 64, 64)


def test_checksum(tmp_path: Path) -> None:
    root = write(tmp_path / "tiny.zip", tiny_imagenet())
    for algorithm in ("md5", "sha256"):
        digest = hashlib.new(algorithm, root.read_bytes()).hexdigest()
        TinyImageNetDataModule(root=root, checksum=digest.upper()).prepare_data()
        wrong = "0" * len(digest)
        with pytest.raises(ValueError, match=f"tiny.zip has checksum {digest}, not {wrong}"):
            TinyImageNetDataModule(root=root, checksum=wrong).prepare_data()
    with pytest.raises(ValueError, match="root=.* is none: leave it out"):
        TinyImageNetDataModule(root=tmp_path, checksum="0" * 32).prepare_data()
    with pytest.raises(ValueError, match="checksum=abc is neither an md5"):
        TinyImageNetDataModule(root=root, checksum="abc")


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no.zip does not exist: give the folder or zip"):
        _ = TinyImageNetDataModule(root=tmp_path / "no.zip").num_classes


@pytest.mark.parametrize(
    ("change", "stage", "message"),
    [
        ({"wnids.txt": None}, "fit", "has no wnids.txt"),
        ({"wnids.txt": b"n01\nn02\n"}, "fit", r"train split has classes that wnids.txt lacks: \['n03'\]"),
        ({"wnids.txt": b"n01\nn02\n"}, "test", r"test split has classes that wnids.txt lacks: \['n03'\]"),
        ({"wnids.txt": b"n01\nn02\nn03\nn04\n"}, "fit", "without a training sample.*: n04"),
        ({"val/images/val_1.JPEG": None}, "test", "lacks the file val/images/val_1.JPEG"),
        ({"val/val_annotations.txt": None}, "test", "lacks the file val/val_annotations.txt"),
        ({"val/val_annotations.txt": b"val_0.JPEG\n"}, "test", "test split has classes that wnids.txt lacks"),
        ({"words.txt": None}, "fit", "lacks the file words.txt"),
        ({"train/n01/images/n01_1.JPEG": b"?"}, "fit", "n01_1.JPEG is not a readable image"),
    ],
)
def test_damage(tmp_path: Path, change: dict[str, bytes | None], stage: str, message: str) -> None:
    files = {name: data for name, data in (tiny_imagenet("") | change).items() if data is not None}
    with pytest.raises(ValueError, match=message):
        TinyImageNetDataModule(root=write(tmp_path / "tiny.zip", files)).setup(stage)


def test_real_subset(real_data: Path) -> None:
    root = real_data / "tiny-imagenet-200" / "tiny-imagenet-200-subset20.zip"
    digest = "46ca768f9435b43c891c9542f7376643900ef52a03ce2f0bac124f06e9b7f2e7"
    data = TinyImageNetDataModule(root=root, checksum=digest, omit_classes=["goldfish"])
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    assert data.num_classes == 20
    assert data.sets["train"].labels.bincount().tolist() == [200] * 20
    assert data.sets["test"].labels.bincount().tolist() == [50] * 20
    assert len(data.train_index) == 3800
    assert data.omitted == [0]


# ImageNet's labels


def test_imagenets_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_files, "WNIDS", ["n03126707", "n01443537", "n02012849"])
    root = write(tmp_path / "tiny.zip", tiny_imagenet())
    data, tiny = (TinyImageNetDataModule(root=root, label_space=space) for space in ("imagenet", "tiny"))
    assert data.num_classes == 1000 and tiny.num_classes == 3  # before setup
    assert data.wnids == tiny.wnids == ["n01443537", "n02012849", "n03126707"]
    assert data.hparams["label_space"] == "imagenet"
    for module in (data, tiny):
        module.setup("test")
    assert data.sets["test"].labels.tolist() == [517, 1, 134]
    assert tiny.sets["test"].labels.tolist() == [2, 0, 1]
    assert [data.class_names[label] for label in (1, 134, 517)] == ["goldfish", "crane bird", "crane"]
    assert len(data.class_names) == 1000
    for stage in ("fit", "validate"):
        with pytest.raises(ValueError, match="'imagenet' is for tests: of its 1000 classes only 3 have samples"):
            data.setup(stage)


def test_wrong_label_spaces(tmp_path: Path) -> None:
    root = write(tmp_path / "tiny.zip", tiny_imagenet())
    with pytest.raises(ValueError, match=r"not among ImageNet's 1000: n01, n02, n03\."):
        TinyImageNetDataModule(root=root, label_space="imagenet").setup("test")
    with pytest.raises(ValueError, match="label_space='coco' must be 'tiny' or 'imagenet'"):
        TinyImageNetDataModule(root=root, label_space="coco")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="omit_classes concerns training, .*: leave it out"):
        TinyImageNetDataModule(root=root, label_space="imagenet", omit_classes=[0])


def test_imagenets_labels_of_the_real_subset(real_data: Path) -> None:
    root = real_data / "tiny-imagenet-200" / "tiny-imagenet-200-subset20.zip"
    data, tiny = (TinyImageNetDataModule(root=root, label_space=space) for space in ("imagenet", "tiny"))
    for module in (data, tiny):
        module.setup("test")
    labels = data.sets["test"].labels
    assert labels.unique().numel() == 20
    # torchvision's names, which come with its weights, and those of Tiny ImageNet's words.txt agree on each label.
    assert all(
        imagenet_names()[a] == tiny.class_names[b] for a, b in zip(labels, tiny.sets["test"].labels, strict=True)
    )
