"""Texts as token ids: the tokenizer, rows that stand in one tensor, padding."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_kd.files import pretrained_at

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000  # texts that the tokenizer gets at a time: its encodings take many times the memory of the ids


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids, one after another in a tensor.

    Attributes:
        ids: int32 (total,); rows need not cover it.
        bounds: First and last + 1 token of each row in `ids`, int64 (N, 2).
        types: Segment (0 or 1) of each token, uint8 (total,); None: all 0.
        before: Special tokens that belong in front of every row and are not in `ids`.
        after: Special tokens that belong behind it.
    """

    ids: Tensor
    bounds: Tensor
    types: Tensor | None = None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def lengths(self) -> Tensor:
        """Tokens of each row, special ones included, int64 (N,)."""
        return self.bounds[:, 1] - self.bounds[:, 0] + len(self.before) + len(self.after)

    def row(self, position: int) -> tuple[Tensor, Tensor]:
        """Ids and segments of one row, int64 (length,)."""
        start, end = self.bounds[position].tolist()
        ids = torch.tensor([*self.before, *self.ids[start:end].tolist(), *self.after])
        return ids, torch.zeros_like(ids) if self.types is None else self.types[start:end].long()


@dataclass(frozen=True)
class Padding:
    """How a tokenizer pads, without the tokenizer: loader processes need no more.

    Attributes:
        token: Id of the padding token.
        segment: Segment of the padding.
        side: `left` or `right`.
        names: Which of `input_ids`, `attention_mask` and `token_type_ids` its networks take.
        multiple: Lengths are rounded up to multiples of this.
    """

    token: int
    segment: int
    side: str
    names: tuple[str, ...]
    multiple: int = 1

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, multiple: int | None = None) -> Padding:
        """That of a tokenizer."""
        known = ("input_ids", "attention_mask", "token_type_ids")
        names = tuple(name for name in known if name in tokenizer.model_input_names)
        return cls(tokenizer.pad_token_id, tokenizer.pad_token_type_id, tokenizer.padding_side, names, multiple or 1)

    def __call__(self, rows: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Pad rows of ids and segments to the longest of them.

        Returns:
            int64 (B, T) for each of `names`.
        """

        def padded(values: list[Tensor], fill: int) -> Tensor:
            matrix = pad_sequence(values, batch_first=True, padding_value=fill, padding_side=self.side)
            missing = -matrix.shape[1] % self.multiple
            return F.pad(matrix, (missing, 0) if self.side == "left" else (0, missing), value=fill)

        batch = {
            "input_ids": padded([ids for ids, _ in rows], self.token),
            "attention_mask": padded([torch.ones_like(ids) for ids, _ in rows], 0),
            "token_type_ids": padded([segments for _, segments in rows], self.segment),
        }
        return {name: batch[name] for name in self.names}


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a folder, or of a model's name, with a padding token.

    Raises:
        ValueError: It can't be loaded, is a slow one, knows no token but special ones, or has no padding token.
    """
    tokenizer = fast_tokenizer(path)
    if tokenizer.pad_token_id is None:
        raise ValueError(f"tokenizer={path!r} has no padding token: set its pad_token and save it again.")
    return tokenizer


def fast_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer in a folder or a .gguf file, or of a model's name, as it is.

    Raises:
        ValueError: It can't be loaded, is a slow one, or knows no token but special ones.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(**pretrained_at(path), use_fast=True)
    except (OSError, ValueError, ImportError) as error:  # ImportError: the package gguf is missing
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise ValueError(
            f"tokenizer={path!r} cannot be loaded ({reason}): give a folder with tokenizer.json, "
            "or the name of a model on the Hugging Face hub."
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer={path!r} is a slow one, without offsets: save it as a fast one (tokenizer.json).")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers 5 makes such a one of a configuration alone
        raise ValueError(
            f"tokenizer={path!r} holds no vocabulary, so that all text would be unknown: give a folder with "
            "tokenizer.json, or the name of a model on the Hugging Face hub."
        )
    return tokenizer


def special_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts in front of a text, and those behind it."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    return tuple(ids[: special.index(0)]), tuple(ids[len(ids) - special[::-1].index(0) :])


def encode(
    tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str] | None = None, *, max_length: int
) -> TokenRows:
    """Tokenise texts or pairs of texts with special tokens, the longer of a pair cut first."""
    rows: list[array[int]] = []
    segments: list[bytes] = []
    for start in range(0, len(first), CHUNK):
        chunk = slice(start, start + CHUNK)
        pair = None if second is None else second[chunk]
        encoded = tokenizer(first[chunk], pair, truncation=True, max_length=max_length, return_attention_mask=False)
        rows += (array("i", ids) for ids in encoded["input_ids"])  # a list takes nine times the memory
        segments += map(bytes, encoded.get("token_type_ids", []))
    return flat_rows(rows, segments or None)


def flat_rows(rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None) -> TokenRows:
    """Put rows, and the segments of their tokens, one after another."""
    ends = torch.tensor([len(row) for row in rows], dtype=torch.int64).cumsum(0)
    bounds = torch.stack([F.pad(ends, (1, 0))[:-1], ends], 1)
    ids = torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int32))
    types = None if segments is None else torch.from_numpy(np.fromiter(chain.from_iterable(segments), np.uint8))
    return TokenRows(ids, bounds, types)
