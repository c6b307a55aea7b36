"""Telling one network's weights from another's."""

import hashlib
from pathlib import Path

from torch import nn


def weights_fingerprint(network: nn.Module, adapter: bool = True) -> str:
    """Of a network's weights, with or without those of its LoRA adapter: a hash over up to 64 values of each tensor.

    It is the same in float32 and bfloat16, and for a network without an adapter and one whose adapter is left out.
    """
    digest = hashlib.sha256()
    for name, tensor in network.named_parameters():
        if not adapter and ".lora_" in name:
            continue
        name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        values = tensor.detach().flatten()
        sample = values[:: max(1, len(values) // 64)].bfloat16().tolist()
        digest.update(repr((name, tuple(tensor.shape), sample)).encode())
    return digest.hexdigest()[:16]


def saved_fingerprint(model: str) -> str | None:
    """Of the weights in a folder, in one file or in shards, so that no result of other weights is taken for theirs.

    None for other models.
    """
    files = sorted(Path(model).glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if files else None
