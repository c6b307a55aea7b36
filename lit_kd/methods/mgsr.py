"""Multi-granularity semantic revision: distillation on sequences, tokens and spans (MGSR, arXiv:2407.10068).

With parts of it left out the same module is plain distillation, ImitKD, GKD or DistiLLM.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from lit_kd.callbacks.first_validation import FirstValidation
from lit_kd.checks import check_choice, check_network, check_not_negative
from lit_kd.language.chunkers import Chunker
from lit_kd.losses import DACKL, DACTerms, ForwardKL, forward_kl
from lit_kd.losses.spans import SpanNorm
from lit_kd.methods.encoder_fine_tuning import entry
from lit_kd.methods.language import Head, TokenLoss, cross_entropy, token_weights
from lit_kd.methods.language_distill import Divergence, LanguageDistill, TeacherRows
from lit_kd.methods.schedules import cosine
from lit_kd.methods.sources import FixedData, Moment, SequenceSource
from lit_kd.methods.span_term import SpanPairs, span_sum
from lit_kd.methods.writing import StudentAndTeacher, token_rows
from lit_kd.models.card import Paper
from lit_kd.models.text import TextBatch
from lit_kd.processes import gather_objects

PAPERS = (
    Paper(
        "Multi-Granularity Semantic Revision for Large Language Model Distillation",
        "Xiaoyu Liu and Yun Zhang and Wei Li and Simiao Li and Xudong Huang and Hanting Chen and Yehui Tang "
        "and Jie Hu and Zhiwei Xiong and Yunhe Wang",
        2024,
        "2407.10068",
    ),
)


class MGSRDistill(LanguageDistill):
    """Distil a causal language model on sequences of a source, by terms of tokens and of spans.

        loss = ce_weight CE + kd_weight tau^2 D(p || q) + span_weight L_span

    each a sum over the completion tokens of all micro-batches and devices of a step, divided by their number N:

    - CE, the SFT term, only on the data's own completions, unless ``sft_on_generated``;
    - D, by default :class:`lit_kd.losses.DACKL`, whose sub-network learns along; its kept classes, kept mass and limits
      are logged;
    - L_span, sum over neighbours k, k + 1 inside a span of ``|| p_k p_{k+1} - q_k q_{k+1} ||^2``, see
      :func:`lit_kd.losses.span_relation_loss`. It is divided by N as well, not by the number of pairs: so no term
      depends on how a batch is split. ``train/pairs`` is the number of pairs to a token.

    The paper's method is the source ``SCRG(Replay())`` with all weights 1. Others are

    - plain distillation: ``FixedData``, ``ForwardKL``, no chunker, ``span_weight=0``;
    - GKD: ``OnPolicy(probability)``, ``GeneralizedJSD(beta)``; ImitKD: ``OnPolicy``, ``ForwardKL``;
    - DistiLLM: ``Replay``, ``SkewForwardKL`` or ``SkewReverseKL``.

    The student is in eval mode and without gradient checkpointing while it writes. Its first validation is before
    training, and printed. On the data's own completions ``val/loss`` is the cross entropy, ``val/kl`` KL(p || q).
    A sharded student (FSDP2) trains on ``FixedData`` with a divergence without parameters.

    Recipe (that of DistiLLM's scripts, as the paper's is not known): AdamW 5e-4, weight decay 0.01, cosine to 1e-7 by
    step, batches of 8, 20 epochs, gradient clipping at 1.0 (by the trainer).

    Args:
        network: the student, of :func:`lit_kd.models.causal_lm`.
        teacher: see :class:`LanguageDistill`.
        source: of the sequences; None: :class:`lit_kd.methods.FixedData`.
        divergence: of rows of logits (n, V) and the temperature, (n,): :class:`lit_kd.losses.ForwardKL` and its like,
            or :class:`lit_kd.losses.DACKL`; None: the latter.
        chunker: of :mod:`lit_kd.language.chunkers`, which finds the spans; None: there are none.
        temperature: tau, of D.
        kd_weight: of D.
        ce_weight: of the cross entropy.
        span_weight: of the span term; 0 without a chunker.
        span_norm: see :func:`lit_kd.losses.span_relation_loss`.
        sft_on_generated: let the cross entropy count on what the student wrote, too.
        subnet_lr_mult: rate of D's parameters, relative to the student's.
        lr: peak rate of the default optimizer.
        **settings: see :class:`lit_kd.methods.LanguageModel`.

    Raises:
        ValueError: as :class:`LanguageDistill`; a number out of range, a span term without chunker or the reverse, a
            source that needs a teacher without one, nothing left to learn on written sequences; in training, a source
            that is driven by validation without any, a sharded student that has to write.
    """

    papers = PAPERS

    def __init__(
        self,
        network: nn.Module,
        teacher: Literal["adapter_off"] | nn.Module | None = "adapter_off",
        source: SequenceSource | None = None,
        divergence: nn.Module | None = None,
        chunker: Chunker | None = None,
        temperature: float = 1.0,
        kd_weight: float = 1.0,
        ce_weight: float = 1.0,
        span_weight: float = 0.0,
        span_norm: SpanNorm = "squared",
        sft_on_generated: bool = False,
        subnet_lr_mult: float = 1.0,
        lr: float = 5e-4,
        **settings: Any,
    ) -> None:
        super().__init__(network, teacher, temperature, kd_weight, ce_weight, lr=lr, **settings)
        self.source = source or FixedData()
        check_not_negative(span_weight=span_weight, subnet_lr_mult=subnet_lr_mult)
        check_choice(get_args(SpanNorm), span_norm=span_norm)
        if not isinstance(self.source, SequenceSource):
            raise ValueError(f"source={source!r} must be a SequenceSource, such as OnPolicy().")
        if divergence is not None:
            check_network(divergence=divergence)
        if bool(span_weight) != (chunker is not None):
            raise ValueError(
                f"span_weight={span_weight} and chunker={chunker} do not go together: give both, or 0 and None."
            )
        if teacher is None and (span_weight or self.source.needs_teacher):
            raise ValueError(f"span_weight={span_weight} and source={type(source).__name__} need a teacher: give one.")
        if self.source.writes and not (kd_weight or span_weight or sft_on_generated):
            raise ValueError(
                f"source={type(source).__name__} lets the student write, and no term learns from that: give kd_weight, "
                "or sft_on_generated=True."
            )
        self.measure = (divergence or DACKL()) if kd_weight else ForwardKL()
        self.chunker, self.span_weight, self.span_norm = chunker, span_weight, span_norm
        self.sft_on_generated, self.subnet_lr_mult = sft_on_generated, subnet_lr_mult
        self.val_kl = MeanMetric()
        self._clipping: list[Tensor] = []

    @property
    def needs_teacher(self) -> bool:
        """Whether a term of the loss asks for the teacher's logits."""
        return self.kd_weight > 0 or self.span_weight > 0

    @cached_property
    def writer(self) -> StudentAndTeacher:
        """What sources write by."""
        return StudentAndTeacher(self)

    # Training

    def configure_model(self) -> None:
        """Refuse early what a sharded network cannot do."""
        if self.device_mesh is not None and self.source.writes:
            raise ValueError(
                f"source={type(self.source).__name__} lets the student write, which is sharded here: train with ddp, "
                "or with FixedData."
            )
        if self.device_mesh is not None and any(True for _ in self.measure.parameters()):
            raise ValueError(
                f"divergence={type(self.measure).__name__} has parameters, which FSDP2 would shard apart from the "
                "student: train with ddp, or give a divergence without, such as ForwardKL."
            )
        super().configure_model()

    def on_fit_start(self) -> None:
        """See that a batch fits into the source's buffer."""
        super().on_fit_start()
        size = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if isinstance(size, int):
            self.source.check(size)

    def configure_callbacks(self) -> list[Callback]:
        """The student is validated before training."""
        return [*super().configure_callbacks(), FirstValidation()]

    def on_train_start(self) -> None:
        """See that a source that validation drives has one."""
        super().on_train_start()
        if self.source.needs_validation and not any(self.trainer.num_val_batches):
            raise ValueError(
                f"source={type(self.source).__name__} is driven by val/loss, and nothing is held out: give the data "
                "validation texts (val_fraction), or a phi to start with."
            )

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """The loss on what the source gives for a batch."""
        batch = self.sequences(batch, batch_idx)
        loss = super().training_step(batch, batch_idx)
        if self._clipping:
            tokens = int(entry(batch, "completion_mask").sum())
            names = ("kept_classes", "kept_mass", "lower", "upper")
            means = torch.stack(self._clipping).sum(0) / max(tokens, 1)
            self.log_dict({f"train/{n}": v for n, v in zip(names, means, strict=True)}, batch_size=max(tokens, 1))
            self._clipping.clear()
        return loss

    def sequences(self, batch: TextBatch, batch_idx: int) -> TextBatch:
        """The batch itself, or one of what the source gives for its prompts; that one has ``generated``."""
        if not self.source.writes:
            return batch
        if "position_ids" in batch:
            raise ValueError("The data pack several texts into a row, which cannot be continued: set packing=False.")
        given = token_rows(batch)
        start, tokens = time.perf_counter(), self.writer.tokens
        steps = self.trainer.estimated_stepping_batches
        moment = Moment(self.trainer.global_step, float(steps), batch_idx, self.global_rank)
        try:
            rows = self.source.rows(given, moment, self.writer)
        except FloatingPointError as error:
            where = f"at step {self.global_step}; indices of the batch: {[row.index for row in given]}."
            raise FloatingPointError(f"{error} {where}") from error
        numbers = {**self.source.numbers(), "written_tokens": self.writer.tokens - tokens}
        numbers["generation_seconds"] = time.perf_counter() - start
        named = {f"train/{name}": float(value) for name, value in numbers.items()}
        self.log_dict(named, batch_size=len(given), on_step=False, on_epoch=True)
        return batch if rows is None else {**self.writer.batch(rows), "generated": True}

    # Loss

    def divergence(self, batch: TextBatch) -> Divergence:
        """D at each completion token."""

        def of_rows(student: Tensor, teacher: Tensor, rows: slice) -> Tensor:
            found = self.measure(student, teacher, self.temperature)
            if not isinstance(found, DACTerms):
                return found
            self._clipping.append(torch.stack([part.detach().sum() for part in found[1:]]))
            return found.loss

        return of_rows

    def token_losses(self, batch: TextBatch, teacher: TeacherRows | None = None) -> dict[str, TokenLoss]:
        """D, and the cross entropy on the data's own completions."""
        losses = super().token_losses(batch, teacher)
        if "generated" in batch and not self.sft_on_generated:
            losses.pop("ce", None)
        return losses

    def term_sums(
        self, batch: TextBatch, weights: Tensor, states: Tensor, head: Head, teacher: TeacherRows | None
    ) -> dict[str, Tensor]:
        """Those of single tokens, and that of spans."""
        sums = super().term_sums(batch, weights, states, head, teacher)
        if self.chunker is None or teacher is None:
            return sums
        pairs = self.pairs(batch)
        settings: Any = {"size": self.vocabulary, "norm": self.span_norm, "chunk": self.chunk}
        sums["span"] = self.span_weight * span_sum(pairs, weights, states, head, teacher, **settings)
        self.log("train/pairs", len(pairs) / max(len(weights), 1), batch_size=max(len(weights), 1))
        return sums

    @cached_property
    def pairs(self) -> SpanPairs:
        """Neighbours inside the spans of a batch's completions."""
        assert self.chunker is not None
        return SpanPairs(self.chunker, self.writer.tokenizer)

    # Validation

    def validation_sums(self, batch: TextBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Plain cross entropy; beside it, where there is a teacher, ``val/kl``."""
        weights = token_weights(entry(batch, "completion_mask"), self.reduction, batch.get("position_ids"))
        size, losses = self.vocabulary, {"ce": cross_entropy(batch)}

        def sums(states: Tensor, head: Head, teacher: TeacherRows | None = None) -> dict[str, Tensor]:
            if teacher is not None:
                losses["kl"] = lambda logits, rows: forward_kl(
                    logits[:, :size], teacher(rows)[:, :size], reduction="none"
                )
            return self.chunked_sums(losses, weights, states, head)

        found = self.read_both(batch, sums) if self.teacher is not None else self.read(batch, sums)
        count = weights.sum().round()
        if "kl" in found:
            self.val_kl.update(found.pop("kl") / count.clamp(min=1), count.clamp(min=1))
            self.log("val/kl", self.val_kl, batch_size=int(count.clamp(min=1)), add_dataloader_idx=False)
        return found, count

    def on_validation_epoch_end(self) -> None:
        """Tell the source."""
        super().on_validation_epoch_end()
        training = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if training and self.val_loss.update_called:
            self.source.validated(float(self.val_loss.compute()))

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The state of each device's source."""
        checkpoint["source"] = gather_objects(self.source.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up that of this device."""
        super().on_load_checkpoint(checkpoint)
        states = checkpoint["source"]
        self.source.load_state_dict(states[self.global_rank % len(states)])

    # Recipe

    def build_optimizer(self) -> Optimizer:
        """Two groups if D has parameters, the second one at ``subnet_lr_mult`` times the rate."""
        subnet = [p for p in self.measure.parameters() if p.requires_grad]
        if not subnet:
            return super().build_optimizer()
        own = {id(p) for p in subnet}
        student = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        optimizer = self.make_optimizer([{"params": student}, {"params": subnet}])
        optimizer.param_groups[1]["lr"] *= self.subnet_lr_mult
        return optimizer

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """AdamW with a weight decay of 0.01."""
        return AdamW(parameters, lr=self.lr, weight_decay=0.01)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """A cosine to 1e-7 over the planned epochs, behind a linear warm-up if there is one."""
        end = 1e-7 / self.lr
        return self.schedule_by_step(
            optimizer,
            lambda step, steps: end + (1 - end) * cosine(step, steps, round(self.warmup * steps)),
            first=1.0 if self.warmup == 0 else end,
        )
