"""Corpora: documents in files or in `datasets`, and their tokens as one stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_kd.language.tokens import CHUNK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Documents:
    """Lines of text files, or the entries `column` of lines of `.jsonl` files or of rows of `datasets`.

    Attributes:
        files: UTF-8, read one after the other.
        dataset: Name or folder for `datasets.load_dataset`, whose split `train` is read, in the place of files.
        config: Its configuration.
        column: Where the text is.
        streaming: Whether `datasets` reads over the network instead of copying all first.
    """

    files: tuple[str, ...] = ()
    dataset: str | None = None
    config: str | None = None
    column: str = "text"
    streaming: bool = False

    def read(self, first: int = 0, shard: int = 0, shards: int = 1) -> Iterator[tuple[int, str]]:
        """Number and text of the documents from the first on whose number is `shard` modulo `shards`.

        Numbers count blank documents, which are left out.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a line is no JSON, or there is no text in that column.
        """
        for number, (source, row) in enumerate(islice(self._rows(), first, None), first):
            if number % shards == shard and (text := self._text(source, row).strip()):
                yield number, text

    def fingerprint(self) -> str:
        """Of all that decides on the texts: of files their contents."""
        digest = hashlib.sha256(repr((self.column, len(self.files))).encode())
        for path in self._paths():
            with path.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
            digest.update(path.suffix.encode())
        if self.dataset is not None:
            digest.update(self._load()._fingerprint.encode())
        return digest.hexdigest()

    def _rows(self) -> Iterator[tuple[str, Any]]:
        if self.dataset is not None:
            # By batches: in a loader process, `datasets` gives single rows of a stream to one process alone.
            for batch in self._load().iter(CHUNK):
                for entries in zip(*batch.values(), strict=True):
                    yield self.dataset, dict(zip(batch, entries, strict=True))
        for path in self._paths():
            with path.open(encoding="utf-8", newline="\n") as lines:
                try:
                    yield from ((str(path), line) for line in lines)
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it."
                    ) from error

    def _paths(self) -> list[Path]:
        for file in self.files:
            if not Path(file).is_file():
                raise FileNotFoundError(f"{file} does not exist: files must name text or .jsonl files.")
        return [Path(file) for file in self.files]

    def _load(self) -> Any:
        from datasets import load_dataset

        return load_dataset(self.dataset, self.config, split="train", streaming=self.streaming)

    def _text(self, source: str, row: Any) -> str:
        if isinstance(row, str):
            if not source.endswith(".jsonl") or not row.strip():
                return row
            try:
                row = json.loads(row)
            except json.JSONDecodeError as error:
                raise ValueError(f"{source} has a line that is no JSON ({error.msg}): {row[:40]!r}.") from error
        text = row.get(self.column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            known = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{source} has no text in column {self.column!r}, only {known}: give text_column.")
        return text


@dataclass(frozen=True)
class DocumentTokens:
    """The tokens of documents, each followed by a separator.

    Attributes:
        ids: int32 (total,).
        ends: Behind the separator of each document, int64 (N,).
    """

    ids: Tensor
    ends: Tensor

    def packed(self, room: int) -> Tensor:
        """First and last + 1 token of rows of `room` tokens, the last one shorter, int64 (rows, 2).

        Documents follow each other, with the separators; no token is lost but the last separator.
        """
        starts = torch.arange(0, max(0, len(self.ids) - 1), room)
        return torch.stack([starts, (starts + room).clamp(max=len(self.ids) - 1)], 1)

    def apart(self, room: int) -> Tensor:
        """First and last + 1 token of rows of at most `room` tokens of one document, int64 (rows, 2)."""
        starts, ends = F.pad(self.ends, (1, 0))[:-1], self.ends - 1
        rows = (ends - starts + room - 1) // room
        before = F.pad(rows.cumsum(0), (1, 0))[:-1]  # rows of the documents before
        first = starts.repeat_interleave(rows) + room * (torch.arange(int(rows.sum())) - before.repeat_interleave(rows))
        return torch.stack([first, torch.minimum(first + room, ends.repeat_interleave(rows))], 1)


def separator(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token between documents, as BERT has it between two texts.

    Raises:
        ValueError: the tokenizer has none.
    """
    for token in (tokenizer.sep_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("The tokenizer has neither sep_token nor eos_token to put between documents: set one.")


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[list[int]]:
    """Token ids of each text, without special tokens, of any length."""
    left = iter(texts)
    while chunk := list(islice(left, CHUNK)):
        yield from tokenizer(chunk, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> DocumentTokens:
    """The tokens of all texts, in memory; texts without a token are left out."""
    stop = separator(tokenizer)
    encoded = (ids for ids in encode_documents(tokenizer, texts) if ids)
    parts, lengths = [torch.empty(0, dtype=torch.int32)], [torch.empty(0, dtype=torch.int64)]
    while chunk := list(islice(encoded, CHUNK)):
        parts.append(torch.tensor(list(chain.from_iterable((*ids, stop) for ids in chunk)), dtype=torch.int32))
        lengths.append(torch.tensor([len(ids) + 1 for ids in chunk]))
    return DocumentTokens(torch.cat(parts), torch.cat(lengths).cumsum(0))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides on the ids of a text."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content = {name: part for name, part in content.items() if name not in ("truncation", "padding")}  # change with use
    return hashlib.sha256(json.dumps([content, separator(tokenizer)], sort_keys=True).encode()).hexdigest()
