"""GLUE (arXiv:1804.07461), from its tsv files or from `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_kd.datamodules.text import TextDataModule, TokenSet
from lit_kd.language.glue import GlueRows, glue_rows, glue_task, read_glue
from lit_kd.language.tokens import encode

HUB_NAME = "nyu-mll/glue"


class GLUEDataModule(TextDataModule):
    """One of GLUE's nine tasks: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli.

    Batches hold `labels`: class numbers as in `datasets` (int64), or STS-B's scores from 0 to 5 (float32). Validation
    and test are the dev set, because GLUE's test set has no labels; MNLI's mismatched dev set is a second loader where
    its file is there. Predictions are made for the test set.
    """

    def __init__(
        self, *, task: str, tokenizer: str, root: str | Path | None = None, max_length: int = 128, **settings: Any
    ) -> None:
        """Check the arguments; files are read in `setup`.

        Args:
            task: As `datasets` names it.
            tokenizer: Folder or hub name of a model whose fast tokenizer it is.
            root: Folder with GLUE's folders of tsv files (`CoLA`, `SST-2`, ...); None: `nyu-mll/glue` by `datasets`.
            max_length: Tokens of a text or pair; the longer of a pair is cut first.
            **settings: Arguments of `TextDataModule`.

        Raises:
            ValueError: As `TextDataModule`; there is no such task; a file is no file of the task.
            FileNotFoundError: In `setup`, a file is missing.
        """
        root = None if root is None else str(root)  # a plain string in the checkpoint
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        self.task = task
        self.num_labels = glue_task(task).num_labels
        self.root = root

    def load(self, split: str) -> list[TokenSet]:
        """Read and tokenise the files of a split."""
        tokenizer = self.tokenizer()
        sets = []
        for rows in self._rows(split):
            second = rows.texts[1] if len(rows.texts) > 1 else None
            tokens = encode(tokenizer, rows.texts[0], second, self.max_length)
            targets = {} if rows.labels is None else {"labels": rows.labels}
            sets.append(TokenSet(tokens, self.padding(tokenizer), targets))
        return sets

    def _rows(self, split: str) -> list[GlueRows]:
        task = glue_task(self.task)
        labelled = split != "predict"
        parts = ("",) if split == "train" else task.parts
        if self.root is None:
            from datasets import load_dataset

            name = {"train": "train", "predict": "test"}.get(split, "validation")
            return [glue_rows(load_dataset(HUB_NAME, task.name, split=name + part), task, labelled) for part in parts]
        name = {"train": "train", "predict": "test"}.get(split, "dev")
        paths = [Path(self.root) / task.folder / f"{name}{part}.tsv" for part in parts]
        there = [path for path in paths if path.is_file()]
        if not paths[0].is_file():
            raise FileNotFoundError(f"{paths[0]} does not exist: root must be the folder of GLUE's folders.")
        return [read_glue(path, task, labelled) for path in there]
