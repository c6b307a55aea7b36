"""Answers to questions, in the files of the official SQuAD scripts."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_kd.checks import check_choice
from lit_kd.files import replacing


class AnswersWriter(BasePredictionWriter):
    """Writes what ``predict`` read off: one file for all devices, in the run's log folder.

    ``predictions.json`` has the text of each question by its id, "" for no answer: what the official scripts take.
    ``null_odds.json`` has the odds that the official script takes as ``--na-prob-file``, and
    ``nbest_predictions.json`` the n-best lists. For :class:`lit_kd.methods.QuestionAnswering`.

    Args:
        split: of the data module, from which it predicts.
    """

    def __init__(self, split: Literal["train", "val", "test"] = "test") -> None:
        super().__init__(write_interval="epoch")
        check_choice(("train", "val", "test"), split=split)
        self.split = split

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        """Put the windows of all devices together and write."""
        module: Any = pl_module
        answers = module.read_answers(predictions, self.split)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # every device has to ask for it
        if not trainer.is_global_zero:
            return
        files = {
            "predictions": {name: answer.text for name, answer in answers.items()},
            "null_odds": {name: answer.null_odds for name, answer in answers.items()},
            "nbest_predictions": {name: [asdict(c) for c in answer.n_best] for name, answer in answers.items()},
        }
        for name, content in files.items():
            with replacing(folder / f"{name}.json") as temporary:
                temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
