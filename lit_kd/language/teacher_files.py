"""A teacher's distributions over the tokens of texts, one file a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_kd.files import replacing


def write_logprobs(folder: str | Path, number: int, logprobs: Tensor, indices: Tensor) -> None:
    """Keep the k largest log-probabilities of each token of a text, float32 (R, k), and their classes, int32 (R, k)."""
    with replacing(_file(folder, number)) as temporary:
        save_file({"logprobs": logprobs.float().contiguous(), "indices": indices.int().contiguous()}, temporary)


def read_logprobs(folder: str | Path, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Log-probabilities, (N, k), and classes, int64 (N, k), of all tokens of some texts, one after another."""
    files = [load_file(_file(folder, number)) for number in numbers]
    return torch.cat([file["logprobs"] for file in files]), torch.cat([file["indices"] for file in files]).long()


def missing_logprobs(folder: str | Path, numbers: Sequence[int]) -> list[int]:
    """Which texts have no file."""
    return [number for number in numbers if not _file(folder, number).is_file()]


def _file(folder: str | Path, number: int) -> Path:
    return Path(folder) / f"{number:06d}.safetensors"
