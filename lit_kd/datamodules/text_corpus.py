"""Plain texts for task-agnostic distillation: files, JSONL, or any set of `datasets`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lit_kd.datamodules import loading
from lit_kd.datamodules.loading import Batch
from lit_kd.datamodules.text import TextDataModule, TokenSet
from lit_kd.language.tokens import CHUNK, Padding, TokenRows, special_frame


class TextCorpusDataModule(TextDataModule):
    """Texts as BERT reads them: special tokens around `max_length` tokens of text, without targets.

    A document is a line of a plain text file, the entry `text_column` of a line of a `.jsonl` file, or of a row of
    `datasets`. `packed`: documents follow each other with a separator between, and are cut into rows of full length, so
    that nothing is padded; what is left at the end is a shorter row. Otherwise a row holds one document, and long ones
    are cut into several rows. No token is lost either way.

    With `streaming`, nothing is kept in memory: each rank and loader process reads every n-th document, in the files'
    order, over and over, and packs its own; an epoch has no end, so the Trainer needs `max_steps`. A resumed run reads
    on where it stopped, exactly so with as many ranks and processes as before.
    """

    def __init__(
        self,
        *,
        tokenizer: str,
        files: list[str] | str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        text_column: str = "text",
        max_length: int = 512,
        packed: bool = True,
        streaming: bool = False,
        **settings: Any,
    ) -> None:
        """Check the arguments; texts are read in `setup`.

        Args:
            tokenizer: Folder or hub name of a model whose fast tokenizer it is.
            files: Text and `.jsonl` files, UTF-8.
            dataset: Name or folder for `datasets.load_dataset`, whose split `train` is read.
            dataset_config: Its configuration.
            text_column: Where the text is in `.jsonl` files and in `datasets`.
            max_length: Tokens of a row, special ones included.
            packed: Join documents to full rows.
            streaming: Read while training.
            **settings: Arguments of `TextDataModule`.

        Raises:
            ValueError: As `TextDataModule`; not exactly one of `files` and `dataset`; `val_fraction` with `streaming`;
                in `setup`, a file without text, or without that column.
            FileNotFoundError: In `setup`, a file is missing.
        """
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        self.files = [files] if isinstance(files, str) else list(files or [])
        if bool(self.files) == (dataset is not None):
            raise ValueError("Give either files or dataset: the texts come from one of them.")
        if streaming and (self.val_fraction or self.train_fraction < 1):
            raise ValueError("streaming=True knows no fractions of the texts: leave train_fraction and val_fraction.")
        self.dataset, self.dataset_config, self.text_column = dataset, dataset_config, text_column
        self.packed, self.streaming = packed, streaming

    def documents(self) -> Iterator[str]:
        """All documents in their order, blank ones left out."""
        if self.dataset is not None:
            from datasets import load_dataset

            rows = load_dataset(self.dataset, self.dataset_config, split="train", streaming=self.streaming)
            yield from (text for row in rows if (text := self._text(row, self.dataset)).strip())
        for file in self.files:
            yield from read_documents(file, self._text)

    def _text(self, row: Any, source: str) -> str:
        if self.text_column not in row:
            raise ValueError(f"{source} has no column {self.text_column!r}, only {', '.join(row)}: give text_column.")
        return row[self.text_column]

    def setup(self, stage: str) -> None:
        """Read all texts, or see that there are some."""
        if self.streaming:
            next(self.documents())
            self._stream = TextStream(self, self.tokenizer())
            return
        super().setup("fit" if stage in ("fit", "validate") else "train")

    def load(self, split: str) -> list[TokenSet]:
        """Tokenise the texts, once."""
        if split != "train":
            return []
        tokenizer = self.tokenizer()
        before, after = special_frame(tokenizer)
        room = self.max_length - len(before) - len(after)
        if room < 1:
            raise ValueError(f"max_length={self.max_length} leaves no token between the special ones: raise it.")
        rows = list(pack(encode_documents(tokenizer, self.documents()), tokenizer.sep_token_id, room, self.packed))
        ids = torch.cat(rows)
        ends = torch.tensor([len(row) for row in rows]).cumsum(0)
        bounds = torch.stack([ends - torch.tensor([len(row) for row in rows]), ends], 1)
        return [TokenSet(TokenRows(ids, bounds, before=before, after=after), self.padding(tokenizer))]

    def train_dataloader(self) -> Any:
        """Batches of rows; in streaming without an end."""
        if not self.streaming:
            return super().train_dataloader()
        workers = self.num_workers
        return StreamLoader(self._stream, batch_size=None, num_workers=workers, persistent_workers=workers > 0)

    def val_dataloader(self) -> Any:
        """The held-out rows, or none."""
        return super().val_dataloader() if self.val_fraction else []

    def test_dataloader(self) -> Any:
        """All rows, once each."""
        return [self._eval_loader(texts) for texts in self.sets["train"]]

    predict_dataloader = test_dataloader


class TextStream(IterableDataset[Batch]):
    """Batches of this rank's and process' documents, over and over, from batch number `start` on."""

    def __init__(self, data: TextCorpusDataModule, tokenizer: Any) -> None:
        """Keep where the documents come from."""
        self.data, self.tokenizer = data, tokenizer
        self.start = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield the tokenizer's tensors and `index`, the number of the row in its process' stream."""
        (rank, world), worker = loading.rank_and_world(), get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        shard, shards = rank * of + number, world * of
        # Batches come from the processes in turn: those that this one gave before the start.
        skipped = (self.start - number + of - 1) // of
        yield from islice(self._batches(shard, shards), skipped, None)

    def _batches(self, shard: int, shards: int) -> Iterator[Batch]:
        before, after = special_frame(self.tokenizer)
        room = self.data.max_length - len(before) - len(after)
        padding = Padding.of(self.tokenizer, self.data.pad_to_multiple_of)
        endless = chain.from_iterable(self.data.documents() for _ in count())
        mine = islice(endless, shard, None, shards)
        packed = pack(encode_documents(self.tokenizer, mine), self.tokenizer.sep_token_id, room, self.data.packed)
        for batch in count():
            rows = [torch.tensor([*before, *row.tolist(), *after]) for row in islice(packed, self.data.batch_size)]
            index = (batch * self.data.batch_size + torch.arange(len(rows))) * shards + shard
            yield {**padding([(row, torch.zeros_like(row)) for row in rows]), "index": index}


class StreamLoader(DataLoader[Batch]):
    """A DataLoader over a `TextStream` which goes on in mid-stream."""

    dataset: TextStream
    _position = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield from the restored position on."""
        self.dataset.start = self._position
        for batch in super().__iter__():
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The number of batches handed out."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration start there."""
        self._position = state["position"]


def read_documents(file: str, text_of: Any) -> Iterator[str]:
    """The documents of a text file, a line each, or of a `.jsonl` file; blank ones are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no text, or a line is no JSON.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: files must name text or .jsonl files.")
    empty = True
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            text = line
            if path.suffix == ".jsonl" and line.strip():
                try:
                    text = text_of(json.loads(line), str(path))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is no JSON ({error.msg}).") from error
            if text.strip():
                empty = False
                yield text.strip()
    if empty:
        raise ValueError(f"{path} holds no text.")


def encode_documents(tokenizer: Any, documents: Iterator[str]) -> Iterator[Sequence[int]]:
    """Token ids of each document, without special tokens."""
    while texts := list(islice(documents, CHUNK)):
        yield from tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def pack(documents: Iterator[Sequence[int]], separator: int, room: int, packed: bool) -> Iterator[Tensor]:
    """Cut token ids into rows of at most `room`, int32: the documents joined by separators, or each by itself."""
    waiting: list[int] = []
    for ids in documents:
        waiting += [separator, *ids] if waiting else ids
        while len(waiting) >= room if packed else waiting:
            yield torch.tensor(waiting[:room], dtype=torch.int32)
            del waiting[:room]
    if waiting:
        yield torch.tensor(waiting, dtype=torch.int32)
