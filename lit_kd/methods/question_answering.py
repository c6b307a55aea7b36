"""Fine-tuning of a text encoder that finds answers in a text: SQuAD 1.1 and 2.0."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lit_kd.language.squad import SquadExample, SquadFeature
from lit_kd.language.squad_scores import best_thresholds, squad_scores
from lit_kd.language.squad_spans import SpanPrediction, predict_spans
from lit_kd.losses import kd_loss
from lit_kd.methods.encoder_fine_tuning import EncoderFineTune, entry
from lit_kd.models.text import TextBatch, known_inputs
from lit_kd.processes import gather_objects

Split = Literal["train", "val", "test"]


class QuestionAnswering(EncoderFineTune):
    """A start and an end logit for each token; "no answer" is the span of the [CLS] token alone.

        task    (CE(start, start position) + CE(end, end position)) / 2
        kd      T^2 (KL(teacher_T || network_T) of the starts + the same of the ends) / 2, over [CLS] and the context

    Windows of a question are put together over all devices, each once, read off by
    :func:`lit_kd.language.squad_spans.predict_spans` and scored by :mod:`lit_kd.language.squad_scores`. Logged are
    ``val/exact``, ``val/f1``, the same of questions with (``HasAns_``) and without an answer (``NoAns_``), and
    ``val/best_exact``, ``val/best_f1`` with the thresholds ``..._thresh`` that would have given them: they are values
    of ``null_threshold``. Of limited batches, the questions count of which a window came by.

    Rates of the MiniLM paper for SQuAD 2.0: 6e-5, batch 32, 3 epochs; its in-house 12x384 student 4e-5, batch 48.

    Args:
        network: with ``forward(input_ids, ...)`` that has ``start_logits`` and ``end_logits`` (B, T), for example
            ``text_encoder(path, head="question_answering")``.
        teacher: see :class:`EncoderFineTune`. The data module must then have ``features["train"]``.
        temperature: see :class:`EncoderFineTune`.
        kd_weight: likewise.
        n_best: see :func:`predict_spans`.
        max_answer_length: likewise, tokens.
        null_threshold: likewise; infinity for SQuAD 1.1, where every question has an answer.
        lr: see :class:`EncoderFineTune`.
        optimizer: see :class:`lit_kd.methods.Distill`.
        lr_scheduler: likewise.

    Raises:
        ValueError: a number that is not positive; see also :class:`EncoderFineTune`. Later: batches without what is
            needed, a data module without ``examples`` and ``features``.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module | None = None,
        temperature: float = 2.0,
        kd_weight: float = 0.5,
        n_best: int = 20,
        max_answer_length: int = 30,
        null_threshold: float = 0.0,
        lr: float = 6e-5,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(network, teacher, temperature, kd_weight, lr, optimizer, lr_scheduler)
        self.reading: dict[str, Any] = {
            "n_best": n_best,
            "max_answer_length": max_answer_length,
            "null_threshold": null_threshold,
        }
        predict_spans({}, [], [], **self.reading)  # sees whether the numbers are good
        self._windows: list[dict[str, Tensor]] = []

    def forward(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Start and end logits, each (B, T)."""
        return span_logits(self.network(**known_inputs(self.network, batch)))

    # Training

    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        """Look at the first batch."""
        if batch_idx == 0:
            for name in ("start_positions", "end_positions", *(["index"] if self.teacher else [])):
                entry(batch, name)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """The loss of the spans, and of the teacher's logits."""
        logits = self(batch)
        start, end = (
            position_loss(scores, batch[name])
            for scores, name in zip(logits, ("start_positions", "end_positions"), strict=True)
        )
        terms = {"ce": (start + end) / 2}
        if self.teacher is not None:
            soft = span_logits(self.teacher(**known_inputs(self.teacher.module, batch)))
            allowed = self.allowed(batch["index"], logits[0].shape[1])
            start, end = (
                masked_kd_loss(own, theirs, allowed, self.temperature) for own, theirs in zip(logits, soft, strict=True)
            )
            terms = self.weighted(terms, (start + end) / 2)
        return self.log_terms(terms, len(logits[0]), batch.get("index"))

    def allowed(self, index: Tensor, length: int) -> Tensor:
        """Which of the ``length`` tokens an answer may start or end at, (B, length): [CLS] and the context."""
        _, features = self._questions("train")
        mask = torch.zeros(len(index), length, dtype=torch.bool)
        for row, number in zip(mask, index.tolist(), strict=True):
            feature = features[number]
            inside = torch.tensor([offset is not None for offset in feature.offsets[:length]])
            row[: len(inside)] = inside
            row[feature.cls_index] = True
        return mask.to(index.device)

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Start from no window."""
        self._windows = []

    def on_test_epoch_start(self) -> None:
        """Start from no window."""
        self._windows = []

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Keep the logits."""
        self._windows.append(self.predict_step(batch, batch_idx))

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        """As in validation."""
        self._windows.append(self.predict_step(batch, batch_idx))

    def on_validation_epoch_end(self) -> None:
        """Score the answers."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """As in validation."""
        self._score("test")

    def predict_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        """Position of each window among the features, and its logits, on the CPU; see :class:`AnswersWriter`."""
        start, end = self(batch)
        found = {"index": entry(batch, "index"), "start_logits": start.float(), "end_logits": end.float()}
        return {name: value.cpu() for name, value in found.items()}

    def read_answers(self, windows: Iterable[Mapping[str, Tensor]], split: Split) -> dict[str, SpanPrediction]:
        """The answer to each question of which any device has a window; every device has to call it.

        Args:
            windows: what ``predict_step`` returned on this device.
            split: whose windows they are.
        """
        examples, features = self._questions(split)
        logits = {
            index: (start, end)
            for batch in chain.from_iterable(gather_objects(list(windows)))
            for index, start, end in zip(
                batch["index"].tolist(), batch["start_logits"], batch["end_logits"], strict=True
            )
        }
        return predict_spans(logits, examples, features, **self.reading)

    def _score(self, split: Split) -> None:
        answers = self.read_answers(self._windows, split)
        self._windows = []
        examples = [example for example in self._questions(split)[0] if example.id in answers]
        scores = squad_scores({name: answer.text for name, answer in answers.items()}, examples)
        best = best_thresholds(
            {name: answer.span for name, answer in answers.items()},
            examples,
            {name: answer.null_odds for name, answer in answers.items()},
        )
        numbers = {name: value for name, value in {**scores, **best}.items() if not name.endswith("total")}
        self.log_dict({f"{split}/{name}": value for name, value in numbers.items()}, sync_dist=True)

    def _questions(self, split: Split) -> tuple[list[SquadExample], list[SquadFeature]]:
        data: Any = getattr(self.trainer, "datamodule", None)
        if not (hasattr(data, "examples") and hasattr(data, "features")):
            raise ValueError(
                "QuestionAnswering reads texts and windows of its data module: it needs attributes examples and "
                'features, dicts of lists with the keys "train", "val" and "test".'
            )
        return data.examples[split], data.features[split]


def span_logits(output: Any) -> tuple[Tensor, Tensor]:
    """Start and end logits (B, T) of a Hugging Face output."""
    return output.start_logits, output.end_logits


def position_loss(logits: Tensor, position: Tensor) -> Tensor:
    """Cross-entropy of the positions (B,) among T tokens; positions from T on are left out."""
    length = logits.shape[1]
    return F.cross_entropy(logits.float(), position.clamp(0, length), ignore_index=length)


def masked_kd_loss(logits: Tensor, teacher_logits: Tensor, allowed: Tensor, temperature: float) -> Tensor:
    """:func:`kd_loss` of logits (B, T) over the allowed tokens."""
    # Finite: -inf in both would be nan. The least number must stay one after the division by the temperature.
    least = torch.finfo(torch.float32).min * min(1.0, temperature)
    own, theirs = (values.float().masked_fill(~allowed, least) for values in (logits, teacher_logits))
    return kd_loss(own, theirs, temperature)
