"""The term of the relations inside spans, over the completion tokens of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lit_kd.language.chunkers import Chunker, span_pairs
from lit_kd.losses import chunked_loss, span_relations_of_rows
from lit_kd.losses.spans import SpanNorm
from lit_kd.methods.encoder_fine_tuning import entry
from lit_kd.methods.language import Head
from lit_kd.methods.language_distill import TeacherRows
from lit_kd.models.causal import completion_labels
from lit_kd.models.text import TextBatch


class SpanPairs:
    """The completion tokens of a batch that are in one span with the next; each text is decoded and cut once.

    Args:
        chunker: finds the spans.
        tokenizer: of the tokens.
    """

    def __init__(self, chunker: Chunker, tokenizer: Any) -> None:
        self.of_completion = lru_cache(maxsize=50_000)(lambda ids: span_pairs(chunker, tokenizer, ids))

    def __call__(self, batch: TextBatch) -> list[int]:
        """The n, ascending, for which the tokens n and n + 1 in the order of :func:`completion_labels` are a pair."""
        found, start = [], 0
        for run in completion_runs(batch["input_ids"], entry(batch, "completion_mask")):
            found += [start + k for k in self.of_completion(tuple(run))]
            start += len(run)
        return found


def span_sum(
    pairs: Sequence[int],
    weights: Tensor,
    states: Tensor,
    head: Head,
    teacher: TeacherRows,
    size: int | None,
    norm: SpanNorm,
    chunk: int,
) -> Tensor:
    """Weighted sum over the pairs, see :func:`lit_kd.losses.span_relations_of_rows`, by chunks of states.

    Args:
        pairs: as :class:`SpanPairs` gives them.
        weights: of the completion tokens, (N,); a pair has that of its first one.
        states: that predict them, (N, H).
        head: from states to logits.
        teacher: logits of completion tokens.
        size: of the common vocabulary.
        norm: see :func:`lit_kd.losses.span_relation_loss`.
        chunk: rows of logits held at once.
    """
    chunk = max(chunk, 2)
    order, places = overlapping(pairs, chunk)
    index, firsts = (torch.tensor(numbers, dtype=torch.int64, device=states.device) for numbers in (order, places))

    def relations(logits: Tensor, rows: slice) -> Tensor:
        inside = firsts[(firsts >= rows.start) & (firsts < rows.stop)]
        local = (inside - rows.start)[:, None] + torch.tensor([0, 1], device=inside.device)
        settings: Any = {"norm": norm, "weights": weights[index[inside]]}
        return span_relations_of_rows(logits[:, :size], teacher(index[rows])[:, :size], local, **settings)

    return chunked_loss(relations, states[index], head, chunk)


def completion_runs(input_ids: Tensor, completion_mask: Tensor) -> list[list[int]]:
    """The completions of a batch, of which a row may hold several, in the order of :func:`completion_labels`."""
    row, place = completion_mask[:, 1:].cpu().nonzero(as_tuple=True)
    new = (row.diff() != 0) | (place.diff() != 1)
    tokens = completion_labels(input_ids, completion_mask).cpu()
    return [run.tolist() for run in tokens.tensor_split((new.nonzero()[:, 0] + 1).tolist()) if len(run)]


def overlapping(pairs: Sequence[int], chunk: int) -> tuple[list[int], list[int]]:
    """Rows in an order such that n and n + 1, for each n of ``pairs``, are neighbours inside of one chunk.

    Args:
        pairs: ascending.
        chunk: rows that are read at once, at least 2.

    Returns:
        The rows, of which those at the border of two chunks come twice, and the place of each n.

    Example:
        >>> overlapping([0, 1, 2, 5], chunk=3)
        ([0, 1, 2, 2, 3, 5, 5, 6], [0, 1, 3, 6])
    """
    order: list[int] = []
    places = []
    for row in pairs:
        if not (order and order[-1] == row and len(order) % chunk):
            if len(order) % chunk == chunk - 1:
                order.append(row)  # only fills the chunk
            order.append(row)
        places.append(len(order) - 1)
        order.append(row + 1)
    return order, places
