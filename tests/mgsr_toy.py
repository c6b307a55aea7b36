"""Tiny dialogues, and students and teachers of one tokenizer, for distillation on sequences."""

from typing import Any

import torch
from chat_toy import causal
from lightning.pytorch import LightningDataModule

from lit_kd.datamodules.loading import RankSampler, ShardSampler, StreamSampler, build_loader
from lit_kd.datamodules.text import TextSet
from lit_kd.language.chat import Example, collate

EOS, END = 2, 4


class Rows(TextSet):
    """Prompts of 3 to 5 tokens, completions of 2 to 6 of words and blanks, and the end."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(torch.ones(count))
        draw = torch.Generator().manual_seed(seed)

        def words(low: int, high: int) -> list[int]:
            length = int(torch.randint(low, high + 1, (1,), generator=draw))
            return torch.randint(70, 96, (length,), generator=draw).tolist()

        self.rows = [Example(words(3, 5), [*words(2, 6), END]) for _ in range(count)]

    def __getitem__(self, key: Any) -> Any:
        chosen = [self.rows[i] for i in key["index"].tolist()]
        return {**collate(chosen, EOS), "index": key["index"]}


class Dialogues(LightningDataModule):
    """Of them, some held out."""

    def __init__(self, batch_size: int = 4, count: int = 16, held_out: int = 5) -> None:
        super().__init__()
        self.batch_size, self.train, self.val = batch_size, Rows(count, 0), Rows(held_out, 1)

    def loader(self, rows: Rows, sampler: RankSampler) -> Any:
        return build_loader(rows, sampler, num_workers=0, seed=0, trainer=None)

    def train_dataloader(self) -> Any:
        return self.loader(self.train, StreamSampler(self.train.index, self.batch_size, len(self.train), seed=0))

    def val_dataloader(self) -> Any:
        return [self.loader(self.val, ShardSampler(self.val.index, 3))] if len(self.val) else []

    def batch(self, count: int = 4) -> dict[str, Any]:
        """The first rows."""
        return self.train[{"index": torch.arange(count)}]


def network(path: str, seed: int = 0, **changes: Any) -> Any:
    """With ends that are drawn now and then."""
    found = causal(seed=seed, initializer_range=0.1, **{"max_position_embeddings": 32, **changes})
    with torch.no_grad():
        found.lm_head.weight[[EOS, END]] += 0.5 * torch.randn(2, 16)
    found.tokenizer_path = path
    return found
