"""Chats to fine-tune on, such as those that a teacher has written: every assistant turn, one chat or several a row."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_kd.checks import check_share
from lit_kd.datamodules.loading import Batch, ResumableLoader
from lit_kd.datamodules.packing import Bins
from lit_kd.datamodules.problems import CompletionDataModule
from lit_kd.datamodules.text import Split, TextSet
from lit_kd.language.conversations import Turns, read_chats, turns_of
from lit_kd.language.records import read_manifest
from lit_kd.language.tokens import TokenRows, flat_rows


class TurnSet(TextSet):
    """Chats of which every assistant turn is learnt, padded on the right to the longest row of the batch."""

    bins: Bins | None = None  # None: a chat a row

    def __init__(self, turns: Sequence[Turns], pad: int, multiple: int, max_length: int) -> None:
        """Keep chats, the id of the padding and the multiple that lengths are rounded up to; longer ones are unused."""
        self.rows: TokenRows = flat_rows([one.ids for one in turns], [one.learnt for one in turns])
        lengths = self.rows.lengths()
        super().__init__(lengths, (lengths <= max_length).nonzero()[:, 0])
        self.pad, self.multiple = pad, multiple

    def packed(self, capacity: int, seed: int) -> TurnSet:
        """The used chats in rows of at most so many tokens: the set counts these rows."""
        twin = copy(self)
        twin.bins = Bins(self.index, self.lengths[self.index], capacity, seed)
        twin.lengths, twin.index = twin.bins.filled, torch.arange(len(twin.bins.filled))
        return twin

    def __getitem__(self, key: Batch) -> Batch:
        """Return ids, masks and the chats' positions as `index`; of packed rows also `position_ids`."""
        rows = [[number] for number in key["index"].tolist()]
        if self.bins is not None:
            rows = [self.bins.texts(*place) for place in zip(key["index"].tolist(), key["visit"].tolist(), strict=True)]
        found = [[self.rows.row(number) for number in row] for row in rows]
        batch = {
            "input_ids": self._padded([torch.cat([ids for ids, _ in row]) for row in found], self.pad),
            "attention_mask": self._padded([torch.cat([torch.ones_like(ids) for ids, _ in row]) for row in found], 0),
            "completion_mask": self._padded([torch.cat([learnt for _, learnt in row]) for row in found], 0).bool(),
            "index": torch.tensor([number for row in rows for number in row]),
        }
        if self.bins is not None:
            positions = [torch.cat([torch.arange(len(ids)) for ids, _ in row]) for row in found]
            batch["position_ids"] = self._padded(positions, 0)
        return batch

    def _padded(self, rows: list[Tensor], fill: int) -> Tensor:
        matrix = pad_sequence(rows, batch_first=True, padding_value=fill)
        return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % self.multiple), value=fill)


class ChatDataModule(CompletionDataModule):
    """Chats to fine-tune on: a file, or a folder that :class:`lit_kd.methods.Synthesis` has written.

    Batches hold `input_ids` and `attention_mask` int64 (B, T), `completion_mask` bool (B, T), True for every assistant
    turn with the token that ends it, padded on the right, and `index`, positions of the rows (synthetic ones first,
    then gold ones). A turn whose prompt does not begin with the ids of the turns before it is a row of its own, see
    :func:`lit_kd.language.conversations.turns_of`. Rows longer than `max_length` are left out, with a warning.

    With `packing`, a training row holds several chats, up to `max_length` tokens, and `position_ids` int64 (B, T) begin
    anew at each; `index` has an entry for each of them, row by row, and `batch_size` and `samples_per_epoch`
    count packed rows. An epoch has each chat once. The bins are first-fit-decreasing ones over all chats, those of one
    length drawn anew in each pass. Validation is never packed.
    """

    def __init__(
        self,
        *,
        chats: str,
        tokenizer: str,
        gold: str | None = None,
        gold_fraction: float = 0.5,
        val: str | None = None,
        packing: bool = False,
        system_required: bool = True,
        max_length: int = 2048,
        **settings: Any,
    ) -> None:
        """Check and keep the arguments; files are read in `setup`.

        Args:
            chats: JSONL file of {"messages": [{"role": ..., "content": ...}, ...]}, or a folder of a manifest and rows.
            tokenizer: Folder, hub name or .gguf file of a model whose fast tokenizer it is, with a chat template.
            gold: Such a file or folder that is mixed in; None: none.
            gold_fraction: Share of its chats among all, in (0, 1). They are drawn once, by `seed`; all of `chats` stay.
            val: Such a file or folder to validate on, in the place of `val_fraction`.
            packing: Several chats a training row, none of which sees another one.
            system_required: Refuse chats without a system message.
            max_length: Tokens of a row.
            **settings: Arguments of `TextDataModule`.

        Raises:
            ValueError: As `TextDataModule`; an argument is out of range; in `setup`, a row is no chat, none fits, or
                there are too few gold ones.
            FileNotFoundError: In `setup`, a file is missing.
        """
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        check_share("(0, 1)", gold_fraction=gold_fraction)
        if val is not None and self.val_fraction:
            raise ValueError(f"val={val!r} and val_fraction={self.val_fraction}: leave one out.")
        self.chats, self.gold, self.gold_fraction, self.val = chats, gold, gold_fraction, val
        self.packing, self.system_required = packing, system_required

    def describe(self) -> dict[str, Any]:
        """What decides on the texts; of a folder, its manifest."""
        sources = {"chats": self.chats, "gold": self.gold, "val": self.val}
        folders = {name: source for name, source in sources.items() if source is not None and Path(source).is_dir()}
        return {**super().describe(), **{name: read_manifest(source) for name, source in folders.items()}}

    def load(self, split: Split) -> list[TextSet]:
        """Read and tokenise the chats of "train"."""
        if split != "train":
            raise ValueError(
                f"ChatDataModule has chats to train on, and nothing for {split}: take the problems or the task's data."
            )
        chats = read_chats(self.chats, self.system_required)
        return [self._turns(self.chats, chats + self._gold(len(chats)))]

    def load_train(self) -> tuple[TextSet, TextSet]:
        """The training rows, packed if that is wanted, and those to validate on."""
        train, val = super().load_train()
        if self.val is not None:
            val = self._turns(self.val, read_chats(self.val, self.system_required))
        if not self.packing:
            return train, val
        assert isinstance(train, TurnSet)
        packed = train.packed(self.max_length, self.seed)
        empty = 1 - float(packed.lengths.sum()) / (len(packed) * self.max_length)
        rank_zero_info(
            f"{len(train.index)} chats are packed into {len(packed)} rows of max_length={self.max_length} tokens, of "
            f"which {empty:.1%} stay empty."
        )
        return packed, val

    def val_dataloader(self) -> list[ResumableLoader]:
        """Each chat to validate on once, or no loader."""
        return super().val_dataloader() if self.val is None else [self._eval_loader(t) for t in self._sets("val")]

    def _gold(self, synthetic: int) -> list[Any]:
        """As many gold chats as make the share."""
        if self.gold is None:
            return []
        chats = read_chats(self.gold, self.system_required)
        wanted = round(synthetic * self.gold_fraction / (1 - self.gold_fraction))
        if not 1 <= wanted <= len(chats):
            raise ValueError(
                f"gold_fraction={self.gold_fraction} beside {synthetic} chats asks for {wanted} gold ones, and "
                f"{self.gold} has {len(chats)}: choose another share."
            )
        drawn = torch.randperm(len(chats), generator=torch.Generator().manual_seed(self.seed))[:wanted]
        return [chats[number] for number in drawn.sort().values.tolist()]

    def _turns(self, source: str, chats: Sequence[Any]) -> TurnSet:
        tokenizer = self.tokenizer()
        turns = [row for chat in chats for row in turns_of(tokenizer, chat)]
        found = TurnSet(turns, tokenizer.pad_token_id, self.pad_to_multiple_of or 1, self.max_length)
        long = len(found) - len(found.index)
        if long == len(found):
            raise ValueError(
                f"None of the {len(found)} rows of {source} has at most max_length={self.max_length} tokens."
            )
        if long:
            rank_zero_warn(
                f"{long} of {len(found)} rows of {source} are over max_length={self.max_length} tokens and left out."
            )
        return found
