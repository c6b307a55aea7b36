"""SQuAD 1.1 (arXiv:1606.05250) and 2.0 (arXiv:1806.03822), from the official JSON files or from `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lit_kd.checks import check_choice
from lit_kd.datamodules.subsets import choose_texts
from lit_kd.datamodules.text import Split, TextDataModule, TokenSet
from lit_kd.language.squad import SquadExample, SquadFeature, check_stride, make_features, read_squad, squad_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_NAMES = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}


class SQuADDataModule(TextDataModule):
    """Questions and windows of the texts that answer them; a question may have several windows.

    Training batches hold `start_positions` and `end_positions`, the first and last token of the first gold answer, both
    the cls token where the window does not hold it. `index` is the window's position in `features[split]`, which says
    where tokens come from, for questions `examples[split]`; splits are "train", "val", "test" and "predict".

    Validation, test and prediction are the evaluation file; with `val_fraction`, validation has that share of the
    training file's texts with all their questions. `train_fraction` and `train_samples` count questions.
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
            tokenizer: Folder or hub name of a model whose fast tokenizer it is. One that pads on the left gets all
                windows padded to `max_length`, so that positions don't depend on the batch.
            version: Of the files; 2.0 has questions without an answer.
            train_file: Official JSON file; None: by `datasets`.
            eval_file: Likewise.
            max_length: Tokens of a window with question and special tokens.
            stride: Tokens shared by neighbouring windows, or between their starts.
            stride_mode: Which of both: "overlap" as in transformers, "step" as in BERT's script.
            max_question_length: Tokens after which a question is cut.
            **settings: Arguments of `TextDataModule`.

        Raises:
            ValueError: As `TextDataModule`; an unknown version; in `setup`, a file that is none of SQuAD's or of the
                other version, and a stride that the room beside the question does not allow.
        """
        # Plain strings in the checkpoint: weights_only loading refuses paths.
        train_file = None if train_file is None else str(train_file)
        eval_file = None if eval_file is None else str(eval_file)
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        check_choice(HUB_NAMES, version=version)
        self.version = version
        self.train_file, self.eval_file = train_file, eval_file
        self.windows: dict[str, Any] = {
            "max_length": max_length,
            "stride": stride,
            "stride_mode": stride_mode,
            "max_question_length": max_question_length,
        }
        self._made: dict[Split, tuple[list[SquadExample], list[SquadFeature]]] = {}

    @property
    def examples(self) -> dict[str, list[SquadExample]]:
        """Questions of the splits that are set up."""
        return {split: self._made[source][0] for split, source in self._sources()}

    @property
    def features(self) -> dict[str, list[SquadFeature]]:
        """Windows of the splits that are set up."""
        return {split: self._made[source][1] for split, source in self._sources()}

    def _sources(self) -> list[tuple[Split, Split]]:
        splits: tuple[Split, ...] = ("train", "val", "test", "predict")
        return [(split, self.source(split)) for split in splits if self.source(split) in self._made]

    def source(self, split: Split) -> Split:
        """Prediction has the texts of the test, too."""
        return "test" if split == "predict" else super().source(split)

    def setup(self, stage: str) -> None:
        """See that windows fit, before files are read."""
        check_stride(self.tokenizer(), **self.windows)
        super().setup(stage)

    def load(self, split: Split) -> list[TokenSet]:
        """Read and tokenise the evaluation file."""
        return [self._tokenise(split, self._read(split), self.tokenizer())]

    def load_train(self) -> tuple[TokenSet, TokenSet]:
        """The windows of the training file's questions; those about one text stay together."""
        examples = self._read("train")
        contexts = list(dict.fromkeys(example.context for example in examples))
        _, val = choose_texts(torch.zeros(len(contexts)).long(), self.val_fraction, 1.0, None, self.seed)
        held_out = {contexts[i] for i in val.tolist()}
        rest = [example for example in examples if example.context not in held_out]
        nothing = torch.zeros(len(rest), dtype=torch.int64)
        chosen, _ = choose_texts(nothing, 0.0, self.train_fraction, self.train_samples, self.seed)
        tokenizer = self.tokenizer()
        train = self._tokenise("train", [rest[i] for i in chosen.tolist()], tokenizer)
        return train, self._tokenise("val", [example for example in examples if example.context in held_out], tokenizer)

    def _tokenise(self, split: Split, examples: Sequence[SquadExample], tokenizer: PreTrainedTokenizerBase) -> TokenSet:
        windows = make_features(tokenizer, examples, **self.windows)
        self._made[split] = list(examples), windows.features
        if tokenizer.padding_side == "left":
            self.pad_to_multiple_of = self.max_length  # the features count from the left of max_length tokens
        targets = {}
        if split == "train":
            targets = dict(zip(("start_positions", "end_positions"), windows.positions.unbind(1), strict=True))
        return TokenSet(windows.rows, self.padding(tokenizer), targets)

    def _read(self, split: Split) -> list[SquadExample]:
        file = self.train_file if split == "train" else self.eval_file
        if file is not None:
            return read_squad(file, self.version)
        from datasets import load_dataset

        part = "train" if split == "train" else "validation"
        return squad_examples(load_dataset(HUB_NAMES[self.version], split=part))
