"""Corpora that do not fit into memory: read and tokenised while training, and read on after a resume."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lit_kd.datamodules import loading
from lit_kd.datamodules.loading import Batch
from lit_kd.language.documents import Documents, encode_documents, separator
from lit_kd.language.tokens import CHUNK, Padding, special_frame
from lit_kd.processes import gather_objects

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Cursor(NamedTuple):
    """What was given out last: the pass over the documents, the number of the document, its tokens up to there."""

    visit: int = 0
    document: int = 0
    tokens: int = 0


@dataclass(eq=False)
class TextStream(IterableDataset[Batch]):
    """Endless batches of this rank's and loader process' documents, which are every n-th, in their order.

    Attributes:
        documents: The texts.
        tokenizer: A fast one.
        padding: How it pads.
        room: Tokens of a row without special ones.
        batch_size: Rows of a batch.
        packed: Whether documents are joined to full rows.
        rank: Of this process.
        world: Number of ranks.
        turn: Of the rank's loader processes, the one whose batch is next.
        cursors: Of each of them, where it goes on.
    """

    documents: Documents
    tokenizer: PreTrainedTokenizerBase
    padding: Padding
    room: int
    batch_size: int
    packed: bool
    rank: int = 0
    world: int = 1
    turn: int = 0
    cursors: tuple[Cursor, ...] = (Cursor(),)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the tokenizer's tensors, `index`, the document in which each row begins, and the last `cursor`."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are processes instead of threads
        place = (number + self.turn) % workers  # a DataLoader begins with its first process: let that be the next
        before, after = special_frame(self.tokenizer)
        rows = self.rows(self.rank * workers + place, self.world * workers, self.cursors[place])
        while True:
            ids, index, cursors = zip(*islice(rows, self.batch_size), strict=True)
            tokens = [torch.tensor([*before, *row, *after]) for row in ids]
            batch = self.padding([(row, torch.zeros_like(row)) for row in tokens])
            yield {**batch, "index": torch.tensor(index), "cursor": torch.tensor(cursors[-1])}

    def rows(self, shard: int, shards: int, start: Cursor) -> Iterator[tuple[list[int], int, Cursor]]:
        """Ids of each row, the document that it begins in, and the cursor behind it."""
        row: list[int] = []
        first = start.document
        for visit, document, ids in self.tokens(shard, shards, start):
            done = start.tokens if (visit, document) == (start.visit, start.document) else 0
            while done < len(ids):
                first = first if row else document
                part = ids[done : done + self.room - len(row)]
                row += part
                done += len(part)
                if len(row) == self.room or (not self.packed and done == len(ids)):
                    yield row, first, Cursor(visit, document, done)
                    row = []

    def tokens(self, shard: int, shards: int, start: Cursor) -> Iterator[tuple[int, int, list[int]]]:
        """Pass, number and ids of each document, in packed rows with a separator behind it.

        Raises:
            ValueError: there is none for this rank and process.
        """
        stop = [separator(self.tokenizer)] if self.packed else []
        for visit in count(start.visit):
            first = start.document if visit == start.visit else 0
            mine = self.documents.read(first, shard, shards)
            found = False
            while chunk := list(islice(mine, CHUNK)):
                texts = [text for _, text in chunk]
                for (document, _), ids in zip(chunk, encode_documents(self.tokenizer, texts), strict=True):
                    if ids:
                        found = True
                        yield visit, document, [*ids, *stop]
            if not found and first == 0:
                raise ValueError(
                    f"There is no text for rank and loader process {shard + 1} of {shards}: give more documents, or "
                    "take fewer devices or num_workers."
                )


class StreamLoader:
    """Batches of a `TextStream`, in epochs of equal numbers of batches, which go on in mid-epoch.

    It is no DataLoader, although it has one, and has a length: otherwise Lightning would fetch a batch ahead and save a
    position that is one too far.

    Attributes:
        limit: Batches that the trainer takes of an epoch (limit_train_batches); None means all.
    """

    limit: int | None = None

    def __init__(self, stream: TextStream, num_workers: int, seed: int, length: int | None) -> None:
        """Take the stream, the number of loader processes, their seed, and the batches an epoch; None: endless."""
        self.stream = stream
        self.num_workers = num_workers
        self.seed = seed
        self.length = length
        self._cursors = [Cursor()] * max(1, num_workers)
        self._turn = 0
        self._position = 0
        self._resuming = False

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self.stream.batch_size

    def __len__(self) -> int:
        """Number of batches an epoch."""
        if self.length is None:
            raise TypeError("This stream has no end.")
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        """Yield an epoch's batches, at first from the restored position."""
        if not self._resuming:
            self._position = 0
        self._resuming = False
        self.stream.rank, self.stream.world = loading.rank_and_world()
        self.stream.turn, self.stream.cursors = self._turn, tuple(self._cursors)
        loader = DataLoader(
            self.stream,
            batch_size=None,  # the stream yields whole batches
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # else each epoch draws from the global one
        )
        left = None if self.length is None else self.length - self._position
        for batch in islice(loader, left):
            self._cursors[self._turn] = Cursor(*batch.pop("cursor").tolist())
            self._turn = (self._turn + 1) % len(self._cursors)
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """The batches handed out of the epoch, and where every process of every rank goes on; all ranks must ask."""
        own = [list(cursor) for cursor in self._cursors]
        end = self.length if self.limit is None else self.limit
        position = 0 if end is not None and self._position >= end else self._position
        return {"position": position, "turn": self._turn, "cursors": gather_objects(own)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on there.

        With other numbers of ranks or processes than before, all begin with the earliest document of those saved.
        """
        rank, world = loading.rank_and_world()
        cursors = [[Cursor(*cursor) for cursor in of_rank] for of_rank in state["cursors"]]
        self._position, self._resuming = state["position"], True
        if len(cursors) == world and len(cursors[0]) == len(self._cursors):
            self._cursors, self._turn = cursors[rank], state["turn"]
            return
        earliest = min(cursor for of_rank in cursors for cursor in of_rank)
        warnings.warn(
            f"The stream was read by {len(cursors)} ranks of {len(cursors[0])} processes and is now by {world} of "
            f"{len(self._cursors)}: it goes on from document {earliest.document}, some texts come again.",
            stacklevel=2,
        )
        self._cursors, self._turn = [earliest._replace(tokens=0)] * len(self._cursors), 0
