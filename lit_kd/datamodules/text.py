"""What text data modules share: sets of token rows, buckets of similar lengths, padding at the last moment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from lit_kd.datamodules.loading import Batch, BucketSampler, RankSampler, ResumableLoader, ShardSampler
from lit_kd.language.tokens import Padding, TokenRows, load_tokenizer


class TokenSet(Dataset[Batch]):
    """Rows of tokens read by the batch: the key holds `index`, int64 (B,); padded to the longest row of the batch."""

    def __init__(self, rows: TokenRows, padding: Padding, targets: dict[str, Tensor] | None = None) -> None:
        """Keep rows, how to pad them, and further tensors (N, ...) by name."""
        self.rows, self.padding = rows, padding
        self.targets = targets or {}
        self.lengths = rows.lengths()

    def __getitem__(self, key: Batch) -> Batch:
        """Return the tokenizer's tensors, the targets and `index`."""
        index = key["index"]
        batch = self.padding([self.rows.row(position) for position in index.tolist()])
        return {**batch, **{name: values[index] for name, values in self.targets.items()}, "index": index}

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.lengths)


class TextDataModule(LightningDataModule, ABC):
    """Base of text data modules: batches of the tokenizer's tensors, targets and `index`.

    In training, batches hold texts of similar lengths and are padded to their longest one, on the tokenizer's own side;
    what is drawn is a function of (seed, pass) and the same with any number of devices, and a run resumed in mid-epoch
    equals a straight one. In evaluation each text comes once over all ranks.

    Subclasses implement `load`, which returns the sets that a stage needs by name: "train", "val", ..., or lists of
    them where a stage has several loaders.
    """

    def __init__(
        self,
        *,
        tokenizer: str,
        max_length: int,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        train_fraction: float = 1.0,
        val_fraction: float = 0.0,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        """Check and keep the arguments.

        Args:
            tokenizer: Folder or hub name of a model whose fast tokenizer it is.
            max_length: Tokens of a text at most, special ones included.
            batch_size: Training texts a step and device.
            eval_batch_size: Most texts a step and device in evaluation.
            num_workers: Loader processes.
            seed: Of subsets and order.
            train_fraction: Share of the training texts to train on, in (0, 1], drawn by the seed.
            val_fraction: Share of the training texts held out for validation, in [0, 1).
            pad_to_multiple_of: Round lengths up, for kernels that like multiples of 8.

        Raises:
            ValueError: An argument is out of range; in `setup`, the tokenizer can't be loaded or is a slow one.
        """
        super().__init__()
        for name, number, least in (
            ("max_length", max_length, 1),
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("pad_to_multiple_of", pad_to_multiple_of, 1),
        ):
            if number is not None and number < least:
                raise ValueError(f"{name}={number} must be at least {least}.")
        if not 0 < train_fraction <= 1:
            raise ValueError(f"train_fraction={train_fraction} must lie in (0, 1]: 1 trains on every text.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction={val_fraction} must lie in [0, 1): 0 holds no text out.")
        self.save_hyperparameters()
        self.tokenizer_path = tokenizer
        self.max_length = max_length
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.train_fraction, self.val_fraction = train_fraction, val_fraction
        self.pad_to_multiple_of = pad_to_multiple_of
        self.sets: dict[str, list[TokenSet]] = {}
        self.train_index = self.val_index = torch.empty(0, dtype=torch.int64)

    @abstractmethod
    def load(self, split: str) -> list[TokenSet]:
        """Read "train" (one set), "val", "test" or "predict" (one a loader)."""

    def setup(self, stage: str) -> None:
        """Read the sets that the stage needs, once."""
        wanted = {"fit": ("train", "val"), "validate": ("train", "val") if self.val_fraction else ("val",)}
        for split in wanted.get(stage, (stage,)):
            if split not in self.sets:
                self.sets[split] = self.load(split)
        if "train" in self.sets and not len(self.train_index):
            order = torch.randperm(len(self.sets["train"][0]), generator=torch.Generator().manual_seed(self.seed))
            held_out = round(self.val_fraction * len(order))
            kept = round(self.train_fraction * (len(order) - held_out))
            self.val_index, self.train_index = order[:held_out].sort().values, order[held_out:][:kept].sort().values
            if not len(self.train_index) or (self.val_fraction and not held_out):
                raise ValueError(
                    f"train_fraction={self.train_fraction} and val_fraction={self.val_fraction} of {len(order)} texts "
                    "leave one of the two sets empty: raise them."
                )

    def tokenizer(self) -> Any:
        """The tokenizer, loaded anew."""
        return load_tokenizer(self.tokenizer_path)

    def padding(self, tokenizer: Any) -> Padding:
        """How it pads."""
        return Padding.of(tokenizer, self.pad_to_multiple_of)

    def train_dataloader(self) -> ResumableLoader:
        """Full batches of similar lengths."""
        if getattr(self.trainer, "overfit_batches", 0):
            raise ValueError("Trainer(overfit_batches=...) would replace the sampler: use train_fraction instead.")
        (texts,) = self.sets["train"]
        order = BucketSampler(self.train_index, self.batch_size, len(self.train_index), self.seed, texts.lengths)
        loader = self._loader(texts, order)
        limit = getattr(self.trainer, "limit_train_batches", 1.0)
        loader.limit = int(limit * len(loader)) if isinstance(limit, float) else min(limit, len(loader))
        return loader

    def val_dataloader(self) -> list[ResumableLoader]:
        """What is held out of the training texts if `val_fraction` says so, else the validation sets."""
        if self.val_fraction:
            return [self._eval_loader(self.sets["train"][0], self.val_index)]
        return [self._eval_loader(texts) for texts in self.sets["val"]]

    def test_dataloader(self) -> list[ResumableLoader]:
        """Each text once."""
        return [self._eval_loader(texts) for texts in self.sets["test"]]

    def predict_dataloader(self) -> list[ResumableLoader]:
        """Each text once."""
        return [self._eval_loader(texts) for texts in self.sets["predict"]]

    def _eval_loader(self, texts: TokenSet, index: Tensor | None = None) -> ResumableLoader:
        index = torch.arange(len(texts)) if index is None else index
        by_length = index[texts.lengths[index].argsort(stable=True)]
        return self._loader(texts, ShardSampler(by_length, self.eval_batch_size))

    def _loader(self, texts: TokenSet, sampler: RankSampler) -> ResumableLoader:
        return ResumableLoader(
            texts,
            batch_size=None,  # the sampler yields whole batches
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # else each epoch draws from the global one
        )
