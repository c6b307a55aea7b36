"""Images of a folder or a zip archive as one uint8 tensor; archives are read in place, never unpacked."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_kd.datamodules.loading import InMemoryImages

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def list_files(root: Path) -> list[str]:
    """Sorted relative names of the files below a folder or in a zip archive, hidden ones left out."""
    if root.is_dir():
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    else:
        with _open_zip(root) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return sorted(name for name in names if not PurePosixPath(name).name.startswith("."))


def is_image(name: str) -> bool:
    """Whether the suffix of a file name is one of IMAGE_SUFFIXES, in either case."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def read_files(root: Path, names: Iterable[str]) -> Iterator[bytes]:
    """Contents of the files `names` of a folder or zip archive, in order; zip members pass their CRC check.

    Raises:
        ValueError: If a file is missing or a zip member is damaged; the sentence names it.
    """
    if root.is_dir():
        for name in names:
            if not (root / name).is_file():
                raise ValueError(f"{root} lacks the file {name}: copy the data set again.")
            yield (root / name).read_bytes()
        return
    with _open_zip(root) as archive:
        for name in names:
            try:
                yield archive.read(name)
            except KeyError:
                raise ValueError(f"{root} lacks the file {name}: fetch the archive again.") from None
            except (zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{root} is damaged at {name} ({error}): fetch the archive again.") from error


def decode_image(data: bytes, source: str) -> np.ndarray:
    """Decode a file to RGB uint8 (H, W, 3), greyscale included.

    Raises:
        ValueError: If PIL cannot read it; the sentence names `source`.
    """
    try:
        return np.array(Image.open(BytesIO(data)).convert("RGB"))
    except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for broken PNG chunks
        raise ValueError(f"{source} is not a readable image ({error}): replace or remove the file.") from error


def decode_images(root: Path, names: Sequence[str], size: int) -> Tensor:
    """Decode the images `names` of a folder or zip archive to uint8 (N, 3, size, size).

    One thread: 50,000 CIFAR JPEGs take 4 s, and two threads take twice as long because PIL holds the GIL.

    Raises:
        ValueError: If a file is missing, unreadable, or of another size.
    """
    pixels = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    for row, name, data in zip(pixels, names, read_files(root, names), strict=True):
        image = decode_image(data, f"{root}: {name}")
        if image.shape != (size, size, 3):
            raise ValueError(f"{root}: {name} is {image.shape[1]}x{image.shape[0]} pixels, not {size}x{size}.")
        row.copy_(torch.from_numpy(image).permute(2, 0, 1))
    return pixels


def read_class_folders(root: Path, size: int) -> InMemoryImages:
    """Read a folder or zip archive with one folder of images a class, labelled by the sorted folder names."""
    names = [name for name in list_files(root) if is_image(name)]
    folders = [PurePosixPath(name).parent.name for name in names]
    class_names = sorted(set(folders))
    position = {name: label for label, name in enumerate(class_names)}
    labels = torch.tensor([position[folder] for folder in folders], dtype=torch.int64)
    return InMemoryImages(decode_images(root, names, size), labels, class_names)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a readable zip archive ({error}): fetch it again.") from error
