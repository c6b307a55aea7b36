"""GLUE (arXiv:1804.07461), from its tsv files or from `datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_kd.datamodules.text import Split, TextDataModule, TokenSet
from lit_kd.language.glue import GlueRows, glue_rows, glue_task, read_glue
from lit_kd.language.tokens import encode

HUB_NAME = "nyu-mll/glue"


class GLUEDataModule(TextDataModule):
    """One of GLUE's nine tasks: cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli.

    Batches hold `labels`: class numbers as in `datasets` (int64), or STS-B's scores from 0 to 5 (float32). Validation,
    unless texts are held out for it, and test are the dev set, because GLUE's test set has no labels; MNLI's mismatched
    dev set is a second loader where its file is there. Predictions are made for the test set.
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
            ValueError: As `TextDataModule`; there is no such task; in `setup`, a file is no file of the task.
            FileNotFoundError: In `setup`, a file is missing.
        """
        root = None if root is None else str(root)  # a plain string in the checkpoint: weights_only refuses paths
        super().__init__(tokenizer=tokenizer, max_length=max_length, **settings)
        self.task = task
        self.num_labels = glue_task(task).num_labels
        self.root = root

    def load(self, split: Split) -> list[TokenSet]:
        """Read and tokenise the files of a split."""
        tokenizer = self.tokenizer()
        sets = []
        for rows in self._read(split):
            tokens = encode(tokenizer, *rows.texts, max_length=self.max_length)
            targets = {} if rows.labels is None else {"labels": rows.labels}
            sets.append(TokenSet(tokens, self.padding(tokenizer), targets))
        return sets

    def _read(self, split: Split) -> list[GlueRows]:
        task = glue_task(self.task)
        labelled = split != "predict"
        parts = ("",) if split == "train" else task.parts
        if self.root is None:
            from datasets import load_dataset

            name = {"train": "train", "predict": "test"}.get(split, "validation")
            return [glue_rows(load_dataset(HUB_NAME, task.name, split=name + part), task, labelled) for part in parts]
        name = {"train": "train", "predict": "test"}.get(split, "dev")
        folder = Path(self.root) / task.folder
        files = [folder / f"{name}{part}.tsv" for part in parts]
        if task.name == "mrpc" and split == "predict" and not files[0].is_file():
            files = [folder / "msr_paraphrase_test.txt"]  # as Microsoft offers it
        if not files[0].is_file():
            raise FileNotFoundError(f"{files[0]} does not exist: root must be the folder of GLUE's folders.")
        return [read_glue(file, task, labelled) for file in files if file.is_file()]
