"""What text data modules share: sets of token rows, buckets of similar lengths, padding at the last moment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from lit_kd.checks import check_share, check_whole, check_whole_or_none
from lit_kd.datamodules.loading import (
    Batch,
    BucketSampler,
    RankSampler,
    ResumableLoader,
    ShardSampler,
    SortedShardSampler,
    build_loader,
    limited,
)
from lit_kd.datamodules.subsets import choose_texts
from lit_kd.language.tokens import Padding, TokenRows, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "val", "test", "predict"]
_NEEDED: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class TextSet(Dataset[Batch], ABC):
    """Texts read by the batch: the key holds `index`, int64 (B,).

    Attributes:
        lengths: Of every text, int64 (N,): batches of similar ones are made of it.
        index: Positions of the texts that are used, int64 (n,).
    """

    def __init__(self, lengths: Tensor, index: Tensor | None = None) -> None:
        """Keep the lengths, and which texts are used; None: all."""
        self.lengths = lengths
        self.index = torch.arange(len(lengths)) if index is None else index

    def only(self, index: Tensor) -> TextSet:
        """The same set, of whose used texts only those at these positions stay."""
        twin = copy(self)
        twin.index = index[torch.isin(index, self.index)]
        return twin

    def classes(self) -> Tensor:
        """Class of each text, of which subsets take like shares, int64 (N,); all 0: there are none."""
        return torch.zeros(len(self), dtype=torch.int64)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)


class TokenSet(TextSet):
    """Rows of tokens, padded to the longest row of the batch."""

    def __init__(self, rows: TokenRows, padding: Padding, targets: Mapping[str, Tensor] | None = None) -> None:
        """Keep rows, how to pad them, and further tensors (N, ...) by name."""
        super().__init__(rows.lengths())
        self.rows, self.padding = rows, padding
        self.targets = dict(targets or {})

    def classes(self) -> Tensor:
        """The labels, unless they are scores."""
        labels = self.targets.get("labels")
        return super().classes() if labels is None or labels.is_floating_point() else labels

    def __getitem__(self, key: Batch) -> Batch:
        """Return the tokenizer's tensors, the targets and `index`."""
        index = key["index"]
        batch = self.padding([self.rows.row(position) for position in index.tolist()])
        return {**batch, **{name: values[index] for name, values in self.targets.items()}, "index": index}


class TextDataModule(LightningDataModule, ABC):
    """Batches of texts as dicts: the tensors that the tokenizer's networks take, int64 (B, T), targets, and `index`.

    `index` int64 (B,) is the position in the whole training (or other) set. Batches are padded to their longest text,
    on the tokenizer's own side. Training batches are full and of texts of similar lengths. Each text comes once a pass;
    what is drawn is a function of (seed, pass), the same with any number of devices, and a run resumed in mid-epoch
    equals a straight one. In evaluation each text comes once over all ranks: in validation and test in batches
    of similar lengths, long and short ones mixed, in prediction in the order of the files.

    Subclasses implement `load`.
    """

    read_tokenizer = staticmethod(load_tokenizer)
    validates_on_test: ClassVar[bool] = True  # where no text is held out; False: there is no validation then

    def __init__(
        self,
        *,
        tokenizer: str,
        max_length: int = 128,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        samples_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        train_fraction: float = 1.0,
        train_samples: int | None = None,
        val_fraction: float = 0.0,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        """Check and keep the arguments.

        Args:
            tokenizer: Folder or hub name of a model whose fast tokenizer it is.
            max_length: Tokens of a text at most, special ones included.
            batch_size: Training texts a step and device.
            eval_batch_size: Most texts a step and device in evaluation.
            samples_per_epoch: Draws an epoch over all devices, rounded up to full batches; None means the number of
                training texts.
            num_workers: Loader processes.
            seed: Of subsets and order.
            train_fraction: Share of the training texts to train on, in (0, 1], with like shares of all classes.
            train_samples: Their number, in the place of the share.
            val_fraction: Share of the training texts held out for validation, in [0, 1); 0 validates as the data have
                it.
            pad_to_multiple_of: Round lengths up, for kernels that like multiples of 8.

        Raises:
            ValueError: An argument is out of range; in `setup`, the tokenizer can't be loaded, is a slow one or knows
                no texts of that length.
        """
        super().__init__()
        check_whole(max_length=max_length, batch_size=batch_size, eval_batch_size=eval_batch_size)
        check_whole(0, num_workers=num_workers, seed=seed)
        check_whole_or_none(
            samples_per_epoch=samples_per_epoch, train_samples=train_samples, pad_to_multiple_of=pad_to_multiple_of
        )
        check_share("(0, 1]", train_fraction=train_fraction)
        check_share("[0, 1)", val_fraction=val_fraction)
        if train_samples is not None and train_fraction < 1:
            raise ValueError(f"train_fraction={train_fraction} and train_samples={train_samples}: leave one out.")
        self.save_hyperparameters()
        self.tokenizer_path = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.samples_per_epoch = samples_per_epoch
        self.num_workers = num_workers
        self.seed = seed
        self.train_fraction = train_fraction
        self.train_samples = train_samples
        self.val_fraction = val_fraction
        self.pad_to_multiple_of = pad_to_multiple_of
        self.sets: dict[Split, Sequence[TextSet]] = {}

    @abstractmethod
    def load(self, split: Split) -> Sequence[TextSet]:
        """Read and tokenise all texts of "train" (one set), "test" or "predict" (a set for each loader)."""

    def load_train(self) -> tuple[TextSet, TextSet]:
        """The training texts, and those of them that are held out for validation."""
        (whole,) = self.load("train")
        train, val = self.choose(whole.classes())
        return whole.only(train), whole.only(val)

    def choose(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the training and of the validation texts, with like shares of all classes (N,)."""
        return choose_texts(classes, self.val_fraction, self.train_fraction, self.train_samples, self.seed)

    def source(self, split: Split) -> Split:
        """The split whose texts another one has: validation without held-out texts is the test."""
        return "test" if split == "val" and self.validates_on_test and not self.val_fraction else split

    def setup(self, stage: str) -> None:
        """Read the sets that the stage needs, once."""
        for source in map(self.source, _NEEDED[stage]):
            if source in self.sets:
                continue
            if source in ("train", "val"):
                train, val = self.load_train()
                self.sets["train"], self.sets["val"] = [train], [val]
            else:
                self.sets[source] = self.load(source)

    def describe(self) -> dict[str, Any]:
        """What decides on the texts, as plain values: for the manifests of long stages."""
        free = ("batch_size", "eval_batch_size", "num_workers", "pad_to_multiple_of", "limit")
        chosen = {name: value for name, value in self.hparams.items() if name not in free and name[0] != "_"}
        return {"class": type(self).__name__, **chosen}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded anew.

        Raises:
            ValueError: see `read_tokenizer`; its networks know no texts of `max_length` tokens.
        """
        tokenizer = self.read_tokenizer(self.tokenizer_path)
        if self.max_length > tokenizer.model_max_length:
            raise ValueError(
                f"max_length={self.max_length} is more than the {tokenizer.model_max_length} tokens that networks of "
                f"tokenizer={self.tokenizer_path!r} take: lower it."
            )
        return tokenizer

    def padding(self, tokenizer: PreTrainedTokenizerBase) -> Padding:
        """How it pads."""
        return Padding.of(tokenizer, self.pad_to_multiple_of)

    def train_dataloader(self) -> ResumableLoader:
        """Full batches of similar lengths."""
        (texts,) = self._sets("train")
        samples = self.samples_per_epoch or len(texts.index)
        loader = self._loader(texts, BucketSampler(texts.index, self.batch_size, samples, self.seed, texts.lengths))
        loader.limit = limited(len(loader), self.trainer)
        return loader

    def val_dataloader(self) -> list[ResumableLoader]:
        """The held-out texts, or those of the test, or no loader."""
        if self.source("val") == "val" and not self.val_fraction:
            return []
        return [self._eval_loader(texts) for texts in self._sets("val")]

    def test_dataloader(self) -> list[ResumableLoader]:
        """Each text once."""
        return [self._eval_loader(texts) for texts in self._sets("test")]

    def predict_dataloader(self) -> list[ResumableLoader]:
        """Each text once, on one device in the order of the files."""
        return [self._loader(t, ShardSampler(t.index, self.eval_batch_size)) for t in self._sets("predict")]

    def _sets(self, split: Split) -> Sequence[TextSet]:
        source = self.source(split)
        if source not in self.sets:
            stage = {"train": "fit", "val": "validate"}.get(split, split)
            raise RuntimeError(f"The {split} set is not there yet: call setup('{stage}').")
        return self.sets[source]

    def _eval_loader(self, texts: TextSet) -> ResumableLoader:
        return self._loader(texts, SortedShardSampler(texts.index, self.eval_batch_size, texts.lengths))

    def _loader(self, texts: TextSet, sampler: RankSampler) -> ResumableLoader:
        return build_loader(texts, sampler, self.num_workers, self.seed, self.trainer)
