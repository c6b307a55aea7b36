"""Tiny data sets in the real formats."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WNIDS = ["n03", "n01", "n02"]  # not sorted on purpose


def encode(seed: int, size: int, mode: str = "RGB", suffix: str = "png") -> bytes:
    """An image file of random pixels."""
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, {"png": "PNG", "jpg": "JPEG", "JPEG": "JPEG"}[suffix])
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder, or into an archive where `root` ends in .zip."""
    if root.suffix == ".zip":
        with zipfile.ZipFile(root, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return root
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def class_folders(classes: list[str], per_class: int = 2, size: int = 32) -> dict[str, bytes]:
    """One folder of images a class."""
    return {
        f"{name}/{i}.png": encode(100 * label + i, size) for label, name in enumerate(classes) for i in range(per_class)
    }


def tiny_imagenet(prefix: str = "tiny-imagenet-200/") -> dict[str, bytes]:
    """The official layout with three classes; the first training image of each is grey."""
    files = {
        "wnids.txt": "\n".join(WNIDS).encode(),
        "words.txt": b"n01\tcrane, bird\nn02\tcrane, machine\nn03\tgoldfish, carp\nn99\tunused\n",
        "val/val_annotations.txt": b"".join(
            b"val_%d.JPEG\t%s\t0\t0\t9\t9\n" % (i, w.encode()) for i, w in enumerate(WNIDS)
        ),
    }
    for label, wnid in enumerate(WNIDS):
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b""
        files[f"val/images/val_{label}.JPEG"] = encode(label, 64, suffix="JPEG")
        for i in range(2):
            mode = "L" if i == 0 else "RGB"
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = encode(10 * label + i, 64, mode, "JPEG")
    return {prefix + name: data for name, data in files.items()}


def cifar_python(
    root: Path, dataset: type[datasets.CIFAR10], monkeypatch: pytest.MonkeyPatch, per_file: int = 20
) -> np.ndarray:
    """torchvision's python version with its own checksums; returns the training pixels (N, 3, 32, 32)."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    key, classes = ("labels", CIFAR10_CLASSES)
    if dataset is datasets.CIFAR100:
        key, classes = ("fine_labels", [f"class{i:02d}" for i in range(100)])
    train = []
    lists: dict[str, list[list[str]]] = {}
    for attribute in ("train_list", "test_list"):
        lists[attribute] = []
        for name, _ in getattr(dataset, attribute):
            pixels = rng.integers(0, 256, (per_file, 3072), dtype=np.uint8)
            labels = [i % len(classes) for i in range(per_file)]
            data = pickle.dumps({"data": pixels, key: labels})
            (folder / name).write_bytes(data)
            lists[attribute].append([name, hashlib.md5(data).hexdigest()])
            if attribute == "train_list":
                train.append(pixels)
    meta = pickle.dumps({dataset.meta["key"]: classes})
    (folder / dataset.meta["filename"]).write_bytes(meta)
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": hashlib.md5(meta).hexdigest()})
    for attribute, value in lists.items():
        monkeypatch.setattr(dataset, attribute, value)
    return np.concatenate(train).reshape(-1, 3, 32, 32)
