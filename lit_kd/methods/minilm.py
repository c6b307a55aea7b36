"""MiniLM: deep self-attention distillation of transformer encoders.

Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
NeurIPS 2020, arXiv:2002.10957; Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
Pretrained Transformers", Findings of ACL 2021, arXiv:2012.15828.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torchmetrics import MeanMetric, MetricCollection

from lit_kd.checks import (
    check_choice,
    check_list,
    check_network,
    check_positive,
    check_share,
    check_whole,
    check_whole_or_none,
)
from lit_kd.losses import MINILM_V1, MINILM_V2, relation_loss
from lit_kd.losses.minilm import check_heads, check_relations
from lit_kd.methods.base import Distill
from lit_kd.methods.encoder_fine_tuning import entry, matrices_and_vectors
from lit_kd.methods.schedules import warmup_linear
from lit_kd.models.card import Paper
from lit_kd.models.levels import freeze_unused
from lit_kd.models.modes import eval_mode
from lit_kd.models.self_attention import SelfAttentionVectors, Vectors, attention_paths, truncated
from lit_kd.models.teacher import FrozenTeacher
from lit_kd.models.text import TextBatch, check_tokenizers, known_inputs, longest_sequence

PAPERS = (
    Paper(
        "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
        "Wenhui Wang and Furu Wei and Li Dong and Hangbo Bao and Nan Yang and Ming Zhou",
        2020,
        "2002.10957",
    ),
    Paper(
        "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
        "Wenhui Wang and Hangbo Bao and Shaohan Huang and Li Dong and Furu Wei",
        2021,
        "2012.15828",
    ),
)

PRESETS = {"minilm": MINILM_V1, "minilm_v2": MINILM_V2}


class MiniLMDistill(Distill):
    """A student learns how the tokens of a text relate to each other in one self-attention layer of its teacher.

    With X, Y in {Q, K, V} of the teacher's layer ``teacher_layer`` and of the student's last layer, split into A
    relation heads of d = H / A:

        loss = sum over relations (x, y) of mean over heads and tokens of KL(softmax(X Y^T / sqrt(d)) || the student's)

    ``minilm``: Q-K (the attention itself) and V-V, with the networks' own attention heads, which must be as many.
    ``minilm_v2``: Q-Q, K-K and V-V with any A that divides both widths: 48 for base-size teachers, 64 for large ones,
    whose layer 21 of 24 (BERT) or 19 of 24 (RoBERTa, XLM-R; both from memory) is better than the last. Widths, depths
    and, in v2, attention heads are free; both networks read the same token ids. There is no other loss: neither
    masked tokens nor soft labels.

    The student runs up to the projections of its last layer. What lies behind them takes no part, is frozen for the
    distillation and keeps its initial values, as the method has it: fine-tuning trains it. The teacher is frozen; its
    layers above ``teacher_layer`` are not part of the module, and are freed where nothing else holds the network.

    Recipe (MiniLM, BERT-base students but 6x768): Adam with decoupled weight decay 0.01 (none on biases and layer
    norms), 3e-4, betas 0.9 and 0.999, batch 256, 512 tokens, 400,000 steps, linear warm-up over 4,000, linear decay to
    0, by step. Not published and ours: eps 1e-6, gradients clipped at 1 by the trainer. configs/minilm has all rows.

    Args:
        student: an encoder of Hugging Face's, e.g. ``text_encoder(path, init="random", config=...)``.
        teacher: likewise, pretrained.
        relations: ``minilm``, ``minilm_v2``, or pairs such as ``[[q, k], [v, v]]``, with weight 1 each.
        heads: A; None: the attention heads for ``minilm``, 48 for the others.
        teacher_layer: counted from 1; None: the last.
        reduction: ``sample``: mean over the tokens of a text, then over texts; ``token``: over all tokens of a batch.
        chunk: relation heads held at once, see :func:`lit_kd.losses.relation_loss`.
        lr: peak rate of the default optimizer.
        betas: of the default optimizer; the published runs from the in-house teacher had 0.9 and 0.98.
        warmup_steps: of the published schedule.
        optimizer: see :class:`Distill`.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: an unknown architecture or relation, Q-K for an architecture whose attention is more than Q K^T,
            other attention heads in ``minilm``, heads that do not divide, a layer that does not exist, different
            tokenizers; before the first step, a warm-up that does not end, data of another tokenizer, ids beyond the
            embeddings; in training, a batch without ``attention_mask``, texts longer than a network's positions.
    """

    papers = PAPERS
    limits = (
        "What lies behind the queries, keys and values of the last layer keeps its initial values: fine-tune the "
        "network before its outputs are used."
    )

    schedule_interval = "step"

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        relations: Literal["minilm", "minilm_v2"] | list[list[str]] = "minilm_v2",
        heads: int | None = None,
        teacher_layer: int | None = None,
        reduction: Literal["sample", "token"] = "sample",
        chunk: int | None = None,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 4000,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_network(student=student, teacher=teacher)
        check_choice(("sample", "token"), reduction=reduction)
        check_whole_or_none(heads=heads, teacher_layer=teacher_layer, chunk=chunk)
        check_whole(0, warmup_steps=warmup_steps)
        check_positive(lr=lr)
        check_list(betas=betas)
        for beta in betas:
            check_share("[0, 1)", betas=beta)
        if student is teacher:
            raise ValueError("student and teacher are one object, and the teacher is frozen: build two.")
        if isinstance(relations, str) and relations not in PRESETS:
            raise ValueError(f"relations={relations!r} must be one of {', '.join(PRESETS)}, or pairs of q, k and v.")
        pairs: Any = PRESETS[relations] if isinstance(relations, str) else [tuple(pair) for pair in relations]
        check_relations(pairs)
        check_attention(student, teacher, pairs)
        check_tokenizers(student=student, teacher=teacher)
        self.relations = pairs
        self.heads = choose_heads(student, teacher, relations == "minilm", heads)
        self.reduction, self.chunk = reduction, chunk
        self.lr, self.betas, self.warmup_steps = lr, betas, warmup_steps

        below = truncated(teacher, layer_count(teacher) if teacher_layer is None else teacher_layer)
        self.student = SelfAttentionVectors(student)
        self.teacher = FrozenTeacher(SelfAttentionVectors(below))
        metrics = MetricCollection({name: MeanMetric() for name in ("loss", "uniform_loss", *map("".join, pairs))})
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")
        self.longest = min((n for n in map(longest_sequence, (student, teacher)) if n is not None), default=None)
        networks: Any = (student, teacher)
        self.embedded = min(one.get_input_embeddings().num_embeddings for one in networks)
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        ids = torch.zeros(1, 2, dtype=torch.int64, device=next(self.network.parameters()).device)
        example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.enable_grad(), eval_mode(self.student):
            vectors = self.student(**known_inputs(self.network, example))
        used = {name for pair in self.relations for name in pair}
        freeze_unused(self.network, torch.stack([vectors[name].sum() for name in used]).sum())

    # Models

    @property
    def network(self) -> nn.Module:
        """What the run is for: the whole student."""
        return self.student.module

    def forward(self, batch: TextBatch) -> Any:
        """The whole student's output."""
        return self.network(**known_inputs(self.network, batch))

    # Steps

    def on_fit_start(self) -> None:
        """See that the data's ids are the networks'."""
        super().on_fit_start()
        check_tokenizers(data=getattr(self.trainer, "datamodule", None), student=self.network)

    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        """Look at the first batch: on a GPU an id without an embedding ends the process without a sentence."""
        largest = int(entry(batch, "input_ids").max()) if batch_idx == 0 else 0
        if largest >= self.embedded:
            raise ValueError(
                f"input_ids reach {largest}, but a network has embeddings for {self.embedded} tokens: give the data "
                "the teacher's tokenizer."
            )

    def on_validation_batch_start(self, batch: TextBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at it, too: a fit begins with a validation."""
        self.on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Relations of the student's last layer against the teacher's, each logged by the names of its vectors."""
        terms = self.relation_losses(*self.vectors(batch))
        return self.log_terms(terms, len(batch["input_ids"]), batch.get("index"))

    def relation_loss(self, batch: TextBatch) -> Tensor:
        """The loss of a batch."""
        return torch.stack(list(self.relation_losses(*self.vectors(batch)).values())).sum()

    def vectors(self, batch: TextBatch) -> tuple[Vectors, Vectors, Tensor]:
        """Q, K and V of student and teacher, and the mask."""
        mask = entry(batch, "attention_mask")
        if self.longest is not None and mask.shape[1] > self.longest:
            raise ValueError(
                f"A text of {mask.shape[1]} tokens is longer than the {self.longest} positions of student or teacher: "
                "lower max_length of the data."
            )
        theirs = self.teacher(**known_inputs(self.teacher.module.module, batch))
        return self.student(**known_inputs(self.network, batch)), theirs, mask

    def relation_losses(self, ours: Vectors, theirs: Vectors, mask: Tensor) -> dict[str, Tensor]:
        """The loss of each relation: "qk" of queries and keys, and so on."""
        return {
            x + y: relation_loss(ours, theirs, mask, [(x, y)], self.heads, self.reduction, chunk=self.chunk)
            for x, y in self.relations
        }

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        """The same losses, and as their scale ``val/uniform_loss``, that of a student of uniform relations."""
        self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        """As in validation."""
        self._evaluate(batch, self.test_metrics)

    def _evaluate(self, batch: TextBatch, metrics: MetricCollection) -> None:
        ours, theirs, mask = self.vectors(batch)
        losses = self.relation_losses(ours, theirs, mask)
        uniform = self.relation_losses({name: torch.zeros_like(x) for name, x in ours.items()}, theirs, mask)
        totals = {"loss": sum(losses.values()), "uniform_loss": sum(uniform.values())}
        weight = mask.any(1).sum() if self.reduction == "sample" else mask.bool().sum()
        for name, value in {**losses, **totals}.items():
            metrics[name].update(value, weight)
        self.log_dict(metrics, batch_size=len(mask), prog_bar=True)

    def predict_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        """Mean of the student's last hidden state over the tokens, (B, H), and index."""
        mask = entry(batch, "attention_mask")[:, :, None]
        hidden = self(batch).last_hidden_state
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return {"feature": mean, **({"index": batch["index"]} if "index" in batch else {})}

    # Recipe

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """AdamW, eps 1e-6, weight decay 0.01 on matrices."""
        return AdamW(matrices_and_vectors(parameters, 0.01), lr=self.lr, betas=self.betas, eps=1e-6)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Linear warm-up over ``warmup_steps``, linear decay to 0 at the last step."""

        def factor(step: int) -> float:
            if step < self.warmup_steps:  # needs no number of steps, which must not be asked before the first one
                return step / self.warmup_steps
            return warmup_linear(step, self.planned_steps(), self.warmup_steps)

        return LambdaLR(optimizer, factor)

    def planned_steps(self) -> int:
        """Optimizer steps of the whole training; see :meth:`steps_an_epoch`."""
        if self.trainer.max_steps > 0:
            return self.trainer.max_steps
        return self.planned_epochs * self.steps_an_epoch()

    def on_train_start(self) -> None:
        """See that the published schedule fits the training."""
        if self.trainer.max_steps <= 0:
            super().on_train_start()
        if self._by_recipe and self.planned_steps() <= self.warmup_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} does not end in a training of {self.planned_steps()} steps: lower "
                "it (4,000 of 400,000 is published)."
            )


def needs_assistant(teacher_layers: int, teacher_hidden: int, student_layers: int, student_hidden: int) -> bool:
    """Whether MiniLM distils through an assistant of the teacher's depth and the student's width.

    ``student_layers <= teacher_layers / 2 and student_hidden <= teacher_hidden / 2`` (arXiv:2002.10957, section 3.3).
    The assistant is distilled from the teacher first, then the student from the assistant, with the same loss.

    Args:
        teacher_layers: its depth.
        teacher_hidden: its width.
        student_layers: its depth.
        student_hidden: its width.

    Example:
        >>> needs_assistant(12, 768, 6, 384), needs_assistant(12, 768, 6, 768), needs_assistant(12, 768, 12, 384)
        (True, False, False)
    """
    return 2 * student_layers <= teacher_layers and 2 * student_hidden <= teacher_hidden


def layer_count(network: Any) -> int:
    """Layers of a network of Hugging Face's; a ValueError for an unknown architecture."""
    attention_paths(network)
    return int(network.config.num_hidden_layers)


def check_attention(student: nn.Module, teacher: nn.Module, relations: Sequence[tuple[str, str]]) -> None:
    """Raise a ValueError for Q-K of a network whose attention scores are more than Q K^T."""
    for network in (student, teacher):
        mixed = [pair for pair in relations if set(pair) == {"q", "k"}]
        if not attention_paths(network).plain and mixed:
            raise ValueError(
                f"The attention of {type(network).__name__} also depends on positions outside of Q and K, so the "
                "relation q-k is not its attention: take relations='minilm_v2'."
            )


def choose_heads(student: Any, teacher: Any, of_attention: bool, heads: int | None) -> int:
    """Relation heads A; see :class:`MiniLMDistill`."""
    own, theirs = student.config.num_attention_heads, teacher.config.num_attention_heads
    if of_attention:
        if own != theirs or heads not in (None, own):
            raise ValueError(
                f"relations='minilm' compares attention head by head, but the student has {own}, the teacher {theirs} "
                f"and heads={heads}: take equal ones, or relations='minilm_v2'."
            )
        heads = own
    chosen = 48 if heads is None else heads
    for name, network in (("student", student), ("teacher", teacher)):
        check_heads(name, network.config.hidden_size, chosen)
    return chosen
