"""SQuAD 1.1 (arXiv:1606.05250) and 2.0 (arXiv:1806.03822), from the official JSON files or from `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from lit_kd.datamodules.text import TextDataModule, TokenSet
from lit_kd.language.squad import SquadExample, SquadFeature, check_stride, make_features, read_squad, squad_examples

EVALUATION = ("val", "test", "predict")  # one file
HUB_NAMES = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}


class SQuADDataModule(TextDataModule):
    """Questions and windows of the texts that answer them; a question may have several windows.

    Training batches hold `start_positions` and `end_positions`, the first and last token of the first gold answer, both
    the cls token where the window does not hold it. `index` is the window's position in `features[split]`, which says
    where tokens come from, for questions `examples[split]`; splits are "train", "val", "test" and "predict".
    """

    def __init__(
        self,
        *,
        tokenizer: str,
        version: Literal["1.1", "2.0"] = "2.0",
        train_file: str | Path | None = None,
        eval_file: str | Path | None = None,
        max_length: int = 384,
        stride: int = 128,
        stride_mode: Literal["overlap", "step"] = "overlap",
        max_question_length: int = 64,
        **settings: Any,
    ) -> None:
        """Check the arguments; files are read in `setup`.

        Args:
            tokenizer: Folder or hub name of a model whose fast tokenizer it is.
            version: Of the files; 2.0 has questions without an answer.
            train_file: Official JSON file; None: by `datasets`.
            eval_file: Likewise, for validation, test and prediction.
            max_length: Tokens of a window with question and special tokens.
            stride: Tokens shared by neighbouring windows, or between their starts.
            stride_mode: Which of both: "overlap" as in transformers, "step" as in BERT's script.
            max_question_length: Tokens after which a question is cut.
            **settings: Arguments of `TextDataModule`; `val_fraction` must stay 0, as windows of one question belong
                together.

        Raises:
            ValueError: As `TextDataModule`; an unknown version; in `setup`, a file that is none of SQuAD's or of the
                other version, and a stride that the room beside the question does not allow.
        """
        files = {name: None if file is None else str(file) for name, file in
                 (("train_file", train_file), ("eval_file", eval_file))}  # fmt: skip
        train_file, eval_file = files["train_file"], files["eval_file"]  # plain strings in the checkpoint
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        if version not in HUB_NAMES:
            raise ValueError(f"version={version!r} must be '1.1' or '2.0'.")
        if self.val_fraction:
            raise ValueError("val_fraction would part windows of one question: validation is the eval_file's.")
        self.version = version
        self.train_file, self.eval_file = train_file, eval_file
        self.windows: dict[str, Any] = {
            "max_length": max_length,
            "stride": stride,
            "stride_mode": stride_mode,
            "max_question_length": max_question_length,
        }
        self.examples: dict[str, list[SquadExample]] = {}
        self.features: dict[str, list[SquadFeature]] = {}

    def setup(self, stage: str) -> None:
        """Read the files that the stage needs, once."""
        check_stride(self.tokenizer(), **self.windows)
        super().setup(stage)

    def load(self, split: str) -> list[TokenSet]:
        """Read, cut and tokenise a file; the evaluation splits are one."""
        names = ("train",) if split == "train" else EVALUATION
        if split != "train" and (other := next((name for name in names if name in self.sets), None)):
            return self.sets[other]
        tokenizer = self.tokenizer()
        examples = self._examples(split)
        windows = make_features(tokenizer, examples, **self.windows)
        self.examples |= dict.fromkeys(names, examples)
        self.features |= dict.fromkeys(names, windows.features)
        if tokenizer.padding_side == "left":  # the features count from the left of max_length tokens
            self.pad_to_multiple_of = self.max_length
        targets: dict[str, torch.Tensor] = {}
        if split == "train":
            targets = dict(zip(("start_positions", "end_positions"), windows.positions.unbind(1), strict=True))
        return [TokenSet(windows.rows, self.padding(tokenizer), targets)]

    def _examples(self, split: str) -> list[SquadExample]:
        file = self.train_file if split == "train" else self.eval_file
        if file is not None:
            return read_squad(file, self.version)
        from datasets import load_dataset

        return squad_examples(
            load_dataset(HUB_NAMES[self.version], split="train" if split == "train" else "validation")
        )
