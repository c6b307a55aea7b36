"""A student that writes in training, its teacher that reads along, and batches of what they wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_kd.language.chat import Example, collate, end_tokens, lm_tokenizer
from lit_kd.language.engines import MixedEngine, TransformersEngine
from lit_kd.language.engines.hugging_face import drawn
from lit_kd.losses import cognitive_difference
from lit_kd.methods.encoder_fine_tuning import entry
from lit_kd.methods.language import Head
from lit_kd.methods.language_distill import LanguageDistill, TeacherRows
from lit_kd.methods.sources import WRITE, TokenRow, Writer, Writing, seed_of
from lit_kd.models.causal import completion_labels, whole_network
from lit_kd.models.modes import eval_mode
from lit_kd.models.teacher import FrozenTeacher
from lit_kd.models.text import TextBatch, longest_sequence


class StudentAndTeacher(Writer):
    """The networks of a module, as sources see them.

    Attributes:
        tokens: written so far.
        tokenizer: of both.
        teacher: its network, which is the student's if that is the teacher without its adapter.
    """

    def __init__(self, module: LanguageDistill) -> None:
        self.module = module
        self.tokenizer = lm_tokenizer(module.network.tokenizer_path)
        base = whole_network(module.network)
        self.teacher: Any = (
            module.teacher.module.network if isinstance(module.teacher, FrozenTeacher) else module.network
        )
        contexts = [longest_sequence(whole_network(one)) for one in (base, self.teacher)]
        self.ends, self.longest = end_tokens(self.tokenizer, base), min((n for n in contexts if n), default=None)
        self.tokens = 0
        self.engine = cache(self._engine)

    def write(self, rows: Sequence[TokenRow], writing: Writing) -> list[TokenRow]:
        """See :class:`Writer`; the draws are functions of seed, step, round and index."""
        seed = seed_of(writing.sampling.seed, WRITE, writing.step, writing.round)
        found = self.engine(writing.share).generate(
            [row.prompt + row.completion for row in rows],
            replace(writing.sampling, seed=seed),
            [row.index for row in rows],
            [writing.room(row) for row in rows],
        )
        new = [completion.ids or () for (completion,) in found]
        self.tokens += sum(map(len, new))
        return [replace(row, completion=row.completion + ids) for row, ids in zip(rows, new, strict=True)]

    def compare(
        self, rows: Sequence[TokenRow], picks: Sequence[np.ndarray] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :class:`Writer`; one pass of each network, in eval mode."""
        batch, size = self.batch(rows), self.module.vocabulary
        uniforms = None if picks is None else torch.from_numpy(np.concatenate(picks)).to(self.module.device)

        def read(states: Tensor, head: Head, teacher: TeacherRows) -> list[Tensor]:
            found = []
            for start in range(0, len(states), self.module.chunk):
                part = slice(start, start + self.module.chunk)
                student, theirs = head(states[part])[:, :size], teacher(part)[:, :size]
                chosen = theirs.argmax(1) if uniforms is None else drawn(theirs, uniforms[part])
                found.append((cognitive_difference(student, theirs), chosen))
            return [torch.cat(parts) for parts in zip(*found, strict=True)]

        with torch.no_grad(), eval_mode(self.module.network):
            differences, chosen = self.module.read_both(batch, read)
        tokens = completion_labels(batch["input_ids"], batch["completion_mask"])
        lengths = [len(row.completion) for row in rows]
        columns = (differences, tokens, chosen, torch.ones_like(tokens, dtype=torch.bool))
        padded = [pad_sequence(column.split(lengths), batch_first=True).cpu() for column in columns]
        return padded[0], padded[1], padded[2], padded[3]

    def batch(self, rows: Sequence[TokenRow]) -> dict[str, Tensor]:
        """A batch of whole rows, made anew: masks come from lengths, so an end token that pads as well counts."""
        examples = [Example(list(row.prompt), list(row.completion)) for row in rows]
        batch = collate(examples, self.tokenizer.pad_token_id or 0)
        batch["index"] = torch.tensor([row.index for row in rows])
        return {name: values.to(self.module.device) for name, values in batch.items()}

    def _engine(self, share: float) -> TransformersEngine:
        size = self.module.answer_batch_size
        if not share:
            return TransformersEngine(self.module.network, self.tokenizer, size)
        return MixedEngine(self.module.network, self.tokenizer, self.teacher, share, size)


def token_rows(batch: TextBatch) -> list[TokenRow]:
    """A batch as rows; what stands before the first completion token is the prompt, all of it if there is none.

    Raises:
        ValueError: the batch has no ``index``, by which draws are told apart.
    """
    if "index" not in batch:
        raise ValueError("The batch has no 'index', by which what the student writes is told apart: give positions.")
    rows = []
    masks = batch["attention_mask"].bool(), entry(batch, "completion_mask").bool()
    for index, ids, real, completion in zip(
        batch["index"].tolist(), batch["input_ids"].cpu(), *(mask.cpu() for mask in masks), strict=True
    ):
        tokens, marked = ids[real].tolist(), completion[real]
        prompt = int(marked.int().argmax()) if marked.any() else len(tokens)
        rows.append(TokenRow(index, tuple(tokens[:prompt]), tuple(tokens[prompt:])))
    return rows
