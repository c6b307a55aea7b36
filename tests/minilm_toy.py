"""Tiny encoders of every known architecture, a tokenizer, and data of random ids."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from text_toy import loader
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertTokenizerFast, PreTrainedModel

from lit_kd.datamodules.loading import ResumableLoader
from lit_kd.models.self_attention import ATTENTION_PATHS, attention_paths
from lit_kd.models.text import known_inputs

WORDS = 40
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 1,
}
NAMED = {
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 32},
    "albert": {"embedding_size": 12},
    "electra": {"embedding_size": 12},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2, "local_attention": 8},
}
ARCHITECTURES = sorted(ATTENTION_PATHS)


def encoder(kind: str = "bert", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A network without dropout."""
    torch.manual_seed(seed)
    quiet = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"), 0.0)
    settings = {**SIZES, **quiet, **NAMED.get(kind, {}), **changes}
    if kind == "distilbert":
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            settings.pop(name, None)
    return AutoModel.from_config(AutoConfig.for_model(kind, **settings))


def batch(lengths: tuple[int, ...] = (7, 4), length: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Random ids, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    length = length or max(lengths)
    mask = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, WORDS, (len(lengths), length), generator=generator)
    ids = ids.where(mask.bool(), torch.tensor(1))
    return {"input_ids": ids, "attention_mask": mask, "index": torch.arange(len(lengths))}


class RandomTexts(LightningDataModule):
    """Texts of random ids; training goes on in mid-epoch, evaluation takes each once."""

    def __init__(self, count: int = 32, batch_size: int = 4) -> None:
        super().__init__()
        self.texts = batch(tuple(4 + i % 5 for i in range(count)), seed=1)
        self.batch_size = batch_size

    def train_dataloader(self) -> ResumableLoader:
        return loader(self.texts, self.batch_size, train=True)

    def val_dataloader(self) -> ResumableLoader:
        return loader(self.texts, self.batch_size, train=False)

    test_dataloader = predict_dataloader = val_dataloader


def saved(network: PreTrainedModel, folder: Path) -> str:
    """The network and a tokenizer of whole words in a folder."""
    network.save_pretrained(folder)
    names = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *(f"w{i}" for i in range(WORDS - 5))]
    (folder / "vocab.txt").write_text("\n".join(names))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def hooked(network: Any, layer: int, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Outputs of the projections of a layer in a forward of the whole network."""
    paths = attention_paths(network)
    layers = network.get_submodule(paths.layers)
    part = layers[0 if paths.shared else layer - 1]
    found: dict[str, list[Tensor]] = {path: [] for path in paths.projections}
    handles = [
        part.get_submodule(path).register_forward_hook(lambda m, a, out, path=path: found[path].append(out))
        for path in paths.projections
    ]
    network(**known_inputs(network, inputs))
    for handle in handles:
        handle.remove()
    outputs = [calls[layer - 1 if paths.shared else 0] for calls in found.values()]
    return list(outputs[0].chunk(3, -1)) if len(outputs) == 1 else outputs
