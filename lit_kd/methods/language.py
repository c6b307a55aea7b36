"""Causal language models: what their methods share, and plain supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from lit_kd.checks import check_choice, check_positive, check_share, check_whole
from lit_kd.language.accuracy import ScoreKind, metric_of
from lit_kd.language.chat import lm_tokenizer, unlearnt_end
from lit_kd.language.engines import Completion, Engine, Sampling, TransformersEngine
from lit_kd.losses import chunked_loss
from lit_kd.methods.base import Distill
from lit_kd.methods.encoder_fine_tuning import entry
from lit_kd.methods.schedules import warmup_linear
from lit_kd.models.causal import CompletionStates, completion_labels, decoder_and_head, whole_network
from lit_kd.models.text import TextBatch, check_tokenizers

GREEDY = Sampling(temperature=0.0)

TokenLoss = Callable[[Tensor, slice], Tensor]
Head = Callable[[Tensor], Tensor]


class LanguageModel(Distill):
    """Supervised fine-tuning of a causal language model on completions, and the base of its distillation methods.

        loss = -1/N sum over completion tokens of log q(token | prompt, tokens before it)

    N counts the completion tokens of all micro-batches and devices of an optimizer step: neither accumulation nor the
    number of devices changes the loss. The end token is one of them; prompts and padding are not. Logits exist for
    completion tokens only, ``chunk`` of them at a time.

    ``test`` lets the model answer problems and scores the answers: ``test/pass@1`` with its interval and more, by the
    metric of their ``kind``, see :func:`lit_kd.language.accuracy.metric_of`. So does validation with batches that hold
    ``prompt``: ``val/pass@1`` and the like stand beside ``val/loss``, and checkpoints can be chosen by them. A sharded
    network (FSDP2) writes no answers and says so. ``predict`` gives the answers.

    Recipe: AdamW, no weight decay, linear warm-up, then linear decay to 0, by step.

    Args:
        network: of :func:`lit_kd.models.causal_lm`; None: the answers come from ``engine``, there is no training.
        engine: writes the answers; None: the network itself, by transformers.
        sampling: how answers are drawn; temperature 0 is greedy.
        kind: of the answers: "number" (GSM8K), "math" (MATH500), "integer" (AIME), "label", "overlap" (Rouge-L) or
            "summary"; the command line takes the data's.
        labels: all there are, for "label"; the command line takes the data's.
        lr: peak rate of the default optimizer.
        warmup: share of the steps in which it is reached.
        reduction: "token" is the mean over all tokens as above, "sequence" that over texts of their means.
        chunk: completion tokens whose logits are held at once.
        answer_batch_size: answers that the network writes at once.
        optimizer: see :class:`Distill`.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: neither network nor engine; a rate, share or number out of range; in training, a batch without
            ``completion_mask``.
    """

    schedule_interval = "step"

    def __init__(
        self,
        network: nn.Module | None = None,
        engine: Engine | None = None,
        sampling: Sampling = GREEDY,
        kind: ScoreKind = "number",
        labels: Sequence[str] = (),
        lr: float = 2e-4,
        warmup: float = 0.0,
        reduction: Literal["token", "sequence"] = "token",
        chunk: int = 256,
        answer_batch_size: int = 32,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if network is None and engine is None:
            raise ValueError("network and engine are both None: one of them has to write the answers.")
        check_positive(lr=lr)
        check_whole(chunk=chunk, answer_batch_size=answer_batch_size)
        check_share("[0, 1)", warmup=warmup)
        check_choice(("token", "sequence"), reduction=reduction)
        self.student = None if network is None else CompletionStates(network)
        self.given_engine, self.answer_batch_size = engine, answer_batch_size
        self.sampling = Sampling(**sampling) if isinstance(sampling, dict) else sampling  # as checkpoints keep it
        self.kind: Any = kind  # checked by the metric; who grades numbers takes no other
        self.lr, self.warmup = lr, warmup
        self.reduction, self.chunk = reduction, chunk
        self.val_loss = MeanMetric()
        self.scores = metric_of(kind, self.sampling.samples, labels)
        self._counted: Tensor | None = None

    @property
    def network(self) -> Any:
        """The language model."""
        if self.student is None:
            raise ValueError(f"{type(self).__name__} has no network, only an engine, and cannot train: give network.")
        return self.student.network

    # Loss

    def on_fit_start(self) -> None:
        """See that the data's ids are the network's, and that it can learn to end its turn."""
        super().on_fit_start()
        check_tokenizers(data=getattr(self.trainer, "datamodule", None), network=self.network)
        warn_of_unlearnt_end(self.network)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """A sum; gradients are divided by the number of all tokens (or texts) before the optimizer's step."""
        terms, count = self.loss_sums(batch)
        self._counted = count + (0 if self._counted is None else self._counted)
        count = count.clamp(min=1)
        means = {name: value / count for name, value in terms.items()}
        return self.log_terms(means, int(count), batch.get("index")) * count

    def loss_sums(self, batch: TextBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Sums of the terms of the loss over a batch, and the number of tokens (or texts) in it."""
        losses = self.token_losses(batch)
        weights = token_weights(entry(batch, "completion_mask"), self.reduction, batch.get("position_ids"))
        sums = self.read(batch, lambda states, head: self.chunked_sums(losses, weights, states, head))
        return sums, weights.sum().round().detach()

    def token_losses(self, batch: TextBatch) -> dict[str, TokenLoss]:
        """The terms of the loss: of logits (n, V) and the slice of the batch's completion tokens that they predict."""
        return {"ce": cross_entropy(batch)}

    def read(self, batch: TextBatch, read: Any) -> Any:
        """``read(states, head)`` of the states that predict the batch's completion tokens."""
        assert self.student is not None
        return self.student(read, **completion_inputs(batch))

    def chunked_sums(
        self, losses: dict[str, TokenLoss], weights: Tensor, states: Tensor, head: Head
    ) -> dict[str, Tensor]:
        """The weighted sum of each term over the tokens."""

        def weighted(loss: TokenLoss) -> TokenLoss:
            return lambda logits, rows: (loss(logits, rows) * weights[rows]).sum()

        return {name: chunked_loss(weighted(loss), states, head, self.chunk) for name, loss in losses.items()}

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the count of all micro-batches and devices: so far they are means of sums."""
        assert self._counted is not None
        total = self.trainer.strategy.reduce(self._counted.double(), reduce_op="sum")
        self._counted = None
        factor = self.trainer.world_size * self.trainer.accumulate_grad_batches / max(float(total), 1.0)
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def validation_step(self, batch: TextBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """``val/loss``, over all tokens (or texts), of completions; scores of answers to prompts."""
        if "prompt" in batch:
            self.score(batch)
        if "prompt" in batch and "completion_mask" not in batch:
            return
        terms, count = self.validation_sums(batch)
        count = count.clamp(min=1)
        self.val_loss.update(torch.stack(list(terms.values())).sum() / count, count)
        self.log("val/loss", self.val_loss, batch_size=int(count), prog_bar=True, add_dataloader_idx=False)

    def validation_sums(self, batch: TextBatch) -> tuple[dict[str, Tensor], Tensor]:
        """What ``val/loss`` is made of: here the loss itself."""
        return self.loss_sums(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores, if there were prompts."""
        self.log_scores("val")

    # Answers

    @cached_property
    def engine(self) -> Engine:
        """What writes the answers.

        Raises:
            ValueError: the network is sharded.
        """
        if self.given_engine is not None:
            return self.given_engine
        if self.device_mesh is not None:
            raise ValueError(
                "A sharded network does not write answers: export it, and test and predict on one device or ddp."
            )
        return TransformersEngine(self.network, lm_tokenizer(self.network.tokenizer_path), self.answer_batch_size)

    def answers(self, batch: TextBatch) -> list[list[Completion]]:
        """``sampling.samples`` answers to each prompt of a batch."""
        return self.engine.generate(batch["prompt"], self.sampling, batch["index"].tolist())

    def score(self, batch: TextBatch) -> None:
        """Answer, and count the answers."""
        self.scores.update(self.answers(batch), batch["gold"])

    def log_scores(self, stage: Literal["val", "test"]) -> None:
        """Log what was counted, on all devices, since the last time."""
        if self.trainer.strategy.reduce_boolean_decision(self.scores.update_called, all=False):
            self.log_dict({f"{stage}/{name}": value for name, value in self.scores.compute().items()})
            self.scores.reset()

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        """Answer and score."""
        self.score(batch)

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self.log_scores("test")

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The answers: a dict for each problem."""
        return [
            {"index": index, "gold": gold, "answers": [asdict(answer) for answer in answers]}
            for index, gold, answers in zip(batch["index"].tolist(), batch["gold"], self.answers(batch), strict=True)
        ]

    # Recipe

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """AdamW without weight decay."""
        return AdamW(parameters, lr=self.lr, weight_decay=0.0)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Linear warm-up and linear decay over the planned epochs."""
        return self.schedule_by_step(
            optimizer,
            lambda step, steps: warmup_linear(step, steps, round(self.warmup * steps)),
            first=1.0 if self.warmup == 0 else 0.0,
        )


def completion_inputs(batch: TextBatch, prefix: str = "") -> dict[str, Tensor]:
    """What :class:`lit_kd.models.CompletionStates` reads of a batch, of the entries whose names begin with ``prefix``.

    That is ``input_ids``, ``attention_mask``, ``completion_mask`` and, of packed rows, ``position_ids``.
    """
    names = ["input_ids", "attention_mask", "completion_mask"]
    names += ["position_ids"] * (f"{prefix}position_ids" in batch)
    return {name: entry(batch, prefix + name) for name in names}


def token_weights(
    completion_mask: Tensor, reduction: Literal["token", "sequence"], position_ids: Tensor | None = None
) -> Tensor:
    """What each completion token counts, (N,): 1, or 1 by the number of them in its text.

    A row is a text, unless ``position_ids`` say where the texts of a packed row begin.
    """
    if position_ids is None:
        text = torch.arange(len(completion_mask), device=completion_mask.device)[:, None].expand_as(completion_mask)
    else:
        text = (position_ids.flatten() == 0).cumsum(0).view_as(position_ids)
    numbers = text[completion_mask]
    if reduction == "token":
        return torch.ones_like(numbers, dtype=torch.float32)
    return 1 / numbers.bincount()[numbers].float()


def cross_entropy(batch: TextBatch) -> TokenLoss:
    """-log q of each completion token."""
    labels = completion_labels(batch["input_ids"], entry(batch, "completion_mask"))
    return lambda logits, rows: F.cross_entropy(logits.float(), labels[rows], reduction="none")


def warn_of_unlearnt_end(network: Any) -> None:
    """Warn where a frozen output layer has to end turns by a token that its checkpoint never wrote (Qwen3#1064)."""
    path, (_, head) = getattr(network, "tokenizer_path", None), decoder_and_head(network)
    if path is None or any(parameter.requires_grad for parameter in head.parameters()):
        return
    end = unlearnt_end(lm_tokenizer(path), whole_network(network))
    if end is not None:
        rank_zero_warn(
            f"The template ends turns by {end}, the checkpoint {path} does not, and its output layer is frozen: the "
            "network may never stop. Take an instruct model, or give lora modules_to_save: [lm_head]."
        )


def common_vocabulary(student: Any, teacher: Any) -> int:
    """Token ids that both networks give logits for; rows beyond are padding (Qwen: 151,936 and 152,064).

    Raises:
        ValueError: ids mean other tokens to the two.
    """
    check_tokenizers(student=student, teacher=teacher)
    sizes = [network.config.get_text_config().vocab_size for network in (student, teacher)]
    if sizes[0] != sizes[1]:
        rank_zero_info(f"Heads of {sizes[0]} and {sizes[1]} rows are cut to {min(sizes)}: the tokenizers agree.")
    return min(sizes)
