"""Instructions to follow: Dolly in MiniLLM's split to train on, and the five sets that its line of work tests on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_kd.checks import check_choice, check_whole, check_whole_or_none
from lit_kd.datamodules.loading import ResumableLoader, ShardSampler
from lit_kd.datamodules.problems import ChatSet, ColumnSet, CompletionDataModule
from lit_kd.datamodules.subsets import choose_texts
from lit_kd.datamodules.text import Split, TextSet
from lit_kd.language.chat import Prompt, encode_completion, encode_prompt
from lit_kd.language.instructions import Instruction, alpaca_prompt, chat_prompt, read_instruction
from lit_kd.language.problems import read_rows
from lit_kd.language.tokens import flat_rows

HELD_OUT = "held_out"
# Where MiniLLM's published data have them; 11_ are those whose references have 11 words or more.
TEST_SETS = {
    "dolly": "dolly/valid.jsonl",
    "self_instruct": "self-inst/valid.jsonl",
    "vicuna": "vicuna/valid.jsonl",
    "s_ni": "sinst/11_/valid.jsonl",
    "unnatural": "uinst/11_/valid.jsonl",
}


class InstructionDataModule(CompletionDataModule):
    """Instructions with responses, such as databricks-dolly-15k, in the split of MiniLLM (arXiv:2306.08543).

    The first `val_samples` rows of the training file are for validation, the rest to train on. Prompts are plain text
    in Stanford Alpaca's template, or chats. Batches to train and validate on hold `input_ids`, `attention_mask` int64
    (B, T), `completion_mask` bool (B, T), True for the response with the token that ends it, and `index` int64 (B,) of
    the row. Rows whose prompt is longer than `max_prompt_length` are left out with a warning that counts them; a
    response is cut at `max_length` tokens of both, and then has no end.

    Test and prediction batches are for generation: lists `prompt` and `gold` (a list of references each), and `index`,
    in the order of the file; each row comes once over all ranks. With `answer_in_validation` a second loader of
    validation has as many of the held-out prompts in this form: for a choice by Rouge-L, as the loss on held-out rows
    may rise where answers still gain.
    """

    kind = "overlap"  # answers are compared with references by Rouge-L

    def __init__(
        self,
        *,
        tokenizer: str,
        root: str | Path | None = None,
        train: str = "databricks/databricks-dolly-15k",
        test: str = HELD_OUT,
        prompt: Literal["alpaca", "chat"] = "alpaca",
        val_samples: int = 1000,
        max_prompt_length: int = 256,
        max_length: int = 512,
        answer_in_validation: int = 0,
        limit: int | None = None,
        **settings: Any,
    ) -> None:
        """Check and keep the arguments; files are read in `setup`.

        Args:
            tokenizer: Folder, hub name or .gguf file of a model whose fast tokenizer it is.
            root: Folder that relative names of files start from, and where MiniLLM's published data lie.
            train: A .jsonl file, or a name for `datasets.load_dataset`, whose split `train` is read. MiniLLM's own file
                is dolly/raw.jsonl; whether its order is that of the hub was not checked.
            test: "held_out": the held-out rows; "dolly", "self_instruct", "vicuna", "s_ni" or "unnatural": the file
                that MiniLLM's data have for it under `root`; or a .jsonl file.
            prompt: "alpaca": plain text; "chat": by the tokenizer's chat template.
            val_samples: Rows to hold out; 0: no validation.
            max_prompt_length: Tokens of a prompt at most, special ones included.
            max_length: Tokens of a training row at most, prompt and response together.
            answer_in_validation: Held-out prompts to answer in each validation.
            limit: Test and predict the first ones only.
            **settings: Arguments of `TextDataModule` but `val_fraction`.

        Raises:
            ValueError: As `TextDataModule`; an argument is out of range or names no data; in `setup`, a line is no
                instruction, or no row is left.
            FileNotFoundError: In `setup`, a file is missing.
        """
        root = None if root is None else str(root)  # a plain string in the checkpoint: weights_only refuses paths
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        if self.val_fraction:
            raise ValueError(
                f"val_fraction={self.val_fraction} must stay 0: the first val_samples={val_samples} validate."
            )
        check_choice(("alpaca", "chat"), prompt=prompt)
        check_whole(max_prompt_length=max_prompt_length)
        check_whole(0, val_samples=val_samples, answer_in_validation=answer_in_validation)
        check_whole_or_none(limit=limit)
        if max_prompt_length >= max_length:
            raise ValueError(f"max_prompt_length={max_prompt_length} must be less than max_length={max_length}.")
        if answer_in_validation > val_samples:
            raise ValueError(
                f"answer_in_validation={answer_in_validation} must be from 0 to val_samples={val_samples}."
            )
        if test in TEST_SETS and root is None:
            raise ValueError(f"test={test!r} is the file {TEST_SETS[test]} of MiniLLM's data: give root, or a file.")
        if test not in (HELD_OUT, *TEST_SETS) and not test.endswith(".jsonl"):
            names = ", ".join((HELD_OUT, *TEST_SETS))
            raise ValueError(f"test={test!r} must be one of {names}, or a .jsonl file.")
        self.root, self.train, self.test = root, train, test
        self.prompt, self.val_samples, self.max_prompt_length = prompt, val_samples, max_prompt_length
        self.answer_in_validation, self.limit = answer_in_validation, limit

    def load(self, split: Split) -> list[TextSet]:
        """Tokenise all training rows, or read those to test and predict."""
        if split == "train":
            return [self._chats(self.training_rows())]
        rows = self.training_rows()[: self.val_samples] if self.test == HELD_OUT else self.rows_of(self.test)
        return [self._questions(rows[: self.limit])]

    def load_train(self) -> tuple[TextSet, TextSet]:
        """The rows to train on, and the first `val_samples`."""
        rows = self.training_rows()
        if len(rows) <= self.val_samples:
            raise ValueError(
                f"val_samples={self.val_samples} holds out all {len(rows)} rows of {self.train}: lower it."
            )
        whole = self._chats(rows)
        rest = torch.zeros(len(rows) - self.val_samples, dtype=torch.int64)
        used, _ = choose_texts(rest, 0.0, self.train_fraction, self.train_samples, self.seed)
        train, val = whole.only(self.val_samples + used), whole.only(torch.arange(self.val_samples))
        if not len(train.index) or (self.val_samples and not len(val.index)):
            raise ValueError(
                f"No prompt of the training or of the held-out rows has at most "
                f"max_prompt_length={self.max_prompt_length} tokens: raise it."
            )
        if self.answer_in_validation:
            self.held_out = self._questions(rows[: self.answer_in_validation])
        return train, val

    def training_rows(self) -> list[Instruction]:
        """All rows of the training file, the held-out ones first."""
        if self.train.endswith(".jsonl"):
            return self.rows_of(self.train)
        from datasets import load_dataset

        return [read_instruction(row) for row in load_dataset(self.train, split="train")]

    def rows_of(self, name: str) -> list[Instruction]:
        """Those of a test set or a file."""
        return read_rows(Path(self.root or ".") / TEST_SETS.get(name, name), read_instruction, "instruction")

    def ask(self, row: Instruction) -> Prompt:
        """The prompt of a row."""
        return alpaca_prompt(row) if self.prompt == "alpaca" else chat_prompt(row)

    def _chats(self, rows: Sequence[Instruction]) -> ChatSet:
        tokenizer = self.tokenizer()
        prompts = [encode_prompt(tokenizer, self.ask(row)) for row in rows]
        fits = self._fits([len(prompt) for prompt in prompts])
        ids = [
            [*prompt, *encode_completion(tokenizer, row.responses[0])][: self.max_length]
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return ChatSet(flat_rows(ids), lengths, tokenizer.pad_token_id, self.pad_to_multiple_of or 1, fits)

    def _questions(self, rows: Sequence[Instruction]) -> ColumnSet:
        tokenizer = self.tokenizer()
        prompts = [self.ask(row) for row in rows]
        fits = self._fits([len(encode_prompt(tokenizer, prompt)) for prompt in prompts])
        if not len(fits):
            raise ValueError(f"No prompt to answer has at most max_prompt_length={self.max_prompt_length} tokens.")
        columns = {
            "prompt": [prompts[i] for i in fits.tolist()],
            "gold": [list(rows[i].responses) for i in fits.tolist()],
        }
        return ColumnSet(columns, fits)

    def _fits(self, lengths: Sequence[int]) -> torch.Tensor:
        """Positions of the rows whose prompt is not too long, int64 (n,)."""
        fits = torch.tensor(lengths) <= self.max_prompt_length
        if not fits.all():
            rank_zero_warn(
                f"{int((~fits).sum())} of {len(fits)} rows have prompts of over "
                f"max_prompt_length={self.max_prompt_length} tokens and are left out."
            )
        return fits.nonzero()[:, 0]

    def val_dataloader(self) -> list[ResumableLoader]:
        """The held-out rows to read, and some of them to answer."""
        if not self.val_samples:
            return []
        loaders = [self._eval_loader(texts) for texts in self._sets("val")]
        if self.answer_in_validation:
            loaders.append(self._in_order(self.held_out))
        return loaders

    def test_dataloader(self) -> list[ResumableLoader]:
        """Each prompt once, on one device in the order of the file."""
        return [self._in_order(texts) for texts in self._sets("test")]

    def _in_order(self, texts: TextSet) -> ResumableLoader:
        return self._loader(texts, ShardSampler(texts.index, self.eval_batch_size))
