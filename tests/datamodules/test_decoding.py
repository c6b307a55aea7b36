"""Reading images of folders and archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_files import class_folders, encode, write

from lit_kd.datamodules.decoding import decode_images, list_files, read_class_folders

CLASSES = ["cat", "owl"]


@pytest.mark.parametrize("name", ["train", "train.zip"])
def test_class_folders(tmp_path: Path, name: str) -> None:
    files = class_folders(CLASSES) | {"owl/.hidden.png": b"", "readme.txt": b"no image"}
    images = read_class_folders(write(tmp_path / name, files), 32)
    assert images.class_names == CLASSES
    assert images.labels.tolist() == [0, 0, 1, 1]
    expected = np.random.default_rng(100).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(images.pixels[2].permute(1, 2, 0).numpy(), expected)


def test_greyscale_becomes_rgb(tmp_path: Path) -> None:
    root = write(tmp_path / "a.zip", {"cat/0.png": encode(0, 32, mode="L")})
    pixels = decode_images(root, ["cat/0.png"], 32)[0]
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])


def test_archive_members_are_never_written(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    root = write(tmp_path / "inner" / "a.zip", {"../cat/0.png": encode(0, 32), "cat/1.png": encode(1, 32)})
    before = sorted(tmp_path.rglob("*"))
    assert len(read_class_folders(root, 32)) == 2
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"text", "cat/0.png is not a readable image"),
        (encode(0, 32)[:1500], "cat/0.png is not a readable image"),
        (encode(0, 32, suffix="jpg")[:600], "cat/0.png is not a readable image"),
        (encode(0, 16), "cat/0.png is 16x16 pixels, not 32x32"),
    ],
)
@pytest.mark.parametrize("name", ["train", "train.zip"])
def test_bad_images_are_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_class_folders(write(tmp_path / name, {"cat/0.png": data}), 32)


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    root = write(tmp_path / "train.zip", class_folders(CLASSES))
    whole = root.read_bytes()
    root.write_bytes(whole[:200] + bytes(100) + whole[300:])  # within the first member
    with pytest.raises(ValueError, match="train.zip is damaged at cat/0.png .*CRC"):
        read_class_folders(root, 32)
    root.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="train.zip is not a readable zip archive"):
        list_files(root)


@pytest.mark.parametrize("name", ["train", "train.zip"])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / name, class_folders(CLASSES))
    with pytest.raises(ValueError, match="lacks the file cat/9.png"):
        decode_images(root, ["cat/0.png", "cat/9.png"], 32)
