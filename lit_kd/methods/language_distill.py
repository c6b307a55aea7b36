"""Distillation of language models: a student and a teacher at the same completion tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lit_kd.checks import check_not_negative, check_positive
from lit_kd.losses import forward_kl
from lit_kd.methods.encoder_fine_tuning import entry
from lit_kd.methods.language import (
    Head,
    LanguageModel,
    TokenLoss,
    common_vocabulary,
    completion_inputs,
    cross_entropy,
    token_weights,
)
from lit_kd.models.causal import CompletionStates
from lit_kd.models.modes import eval_mode
from lit_kd.models.teacher import FrozenTeacher
from lit_kd.models.text import TextBatch

TeacherRows = Callable[[slice | Tensor], Tensor]  # the teacher's logits of some completion tokens
Divergence = Callable[[Tensor, Tensor, slice], Tensor]  # of student's and teacher's logits (n, V) and their rows: (n,)


class LanguageDistill(LanguageModel):
    """Train a causal language model towards another one's distributions over the same completion tokens.

        loss = kd_weight tau^2 / N sum over completion tokens of D(p || q) + ce_weight CE
        p = softmax(z_teacher / tau), q = softmax(z_student / tau)

    D is the forward KL divergence; a method puts another one into :meth:`divergence`, lets the teacher read another
    prompt by :meth:`teacher_inputs`, or adds terms in :meth:`token_losses`. Both networks' logits exist for ``chunk``
    completion tokens at a time. Where no term asks for the teacher, it never runs.

    Args:
        network: the student, of :func:`lit_kd.models.causal_lm`.
        teacher: a network, frozen and not saved again; "adapter_off": the student without its LoRA adapter, at no
            memory of its own; None: none, which asks for ``kd_weight=0``.
        temperature: tau.
        kd_weight: of the divergence.
        ce_weight: of the cross entropy, at temperature 1, on the same tokens.
        **settings: see :class:`lit_kd.methods.LanguageModel`.

    Raises:
        ValueError: a number out of range, no term left, a divergence without a teacher, "adapter_off" without an
            adapter, a teacher of another vocabulary.
    """

    named_teachers: ClassVar[tuple[str, ...]] = ("adapter_off",)

    def __init__(
        self,
        network: nn.Module,
        teacher: Literal["adapter_off"] | nn.Module | None = "adapter_off",
        temperature: float = 1.0,
        kd_weight: float = 1.0,
        ce_weight: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(network, **settings)
        check_positive(temperature=temperature)
        check_not_negative(kd_weight=kd_weight, ce_weight=ce_weight)
        if kd_weight + ce_weight == 0:
            raise ValueError("kd_weight=0 and ce_weight=0 leave no term to learn from: raise one of them.")
        if teacher is None and kd_weight:
            raise ValueError(f"kd_weight={kd_weight} needs a teacher, and it is None: give one, or kd_weight=0.")
        if teacher == "adapter_off" and kd_weight and not hasattr(network, "disable_adapter"):
            raise ValueError('teacher="adapter_off" is the network without its adapter, and it has none: give lora.')
        if teacher is network:
            raise ValueError("network and teacher are one object, and the teacher is frozen: build two.")
        if not isinstance(teacher, nn.Module) and teacher not in (None, *self.named_teachers):
            names = ", ".join(f'"{name}"' for name in self.named_teachers)
            raise ValueError(f"teacher={teacher!r} must be {names} or a network.")
        self.vocabulary = common_vocabulary(network, teacher) if isinstance(teacher, nn.Module) else None
        self.teacher: Any = FrozenTeacher(CompletionStates(teacher)) if isinstance(teacher, nn.Module) else teacher
        self.temperature = temperature
        self.kd_weight, self.ce_weight = kd_weight, ce_weight

    # What methods change

    def teacher_inputs(self, batch: TextBatch) -> dict[str, Tensor]:
        """What the teacher reads: as many completion tokens as the student, in the same order; here the same rows."""
        return completion_inputs(batch)

    def divergence(self, batch: TextBatch) -> Divergence:
        """D at each completion token, at the temperature and without its square."""
        return lambda student, teacher, rows: forward_kl(
            student, teacher, temperature=self.temperature, reduction="none"
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether a term of the loss asks for the teacher's logits."""
        return self.kd_weight > 0

    def token_losses(self, batch: TextBatch, teacher: TeacherRows | None = None) -> dict[str, TokenLoss]:
        """The terms: divergence from the teacher's logits, cut to the common vocabulary, and cross entropy."""
        losses: dict[str, TokenLoss] = {}
        if self.kd_weight and teacher is not None:
            factor, size = self.kd_weight * self.temperature**2, self.vocabulary
            theirs, divergence = teacher, self.divergence(batch)
            losses["kd"] = lambda logits, rows: factor * divergence(logits[:, :size], theirs(rows)[:, :size], rows)
        if self.ce_weight:
            ce = cross_entropy(batch)
            losses["ce"] = lambda logits, rows: self.ce_weight * ce(logits, rows)
        return losses

    # Two networks at the same tokens

    def loss_sums(self, batch: TextBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Sums of the terms over a batch, and the number of tokens (or texts) in it."""
        weights = token_weights(entry(batch, "completion_mask"), self.reduction, batch.get("position_ids"))

        def sums(states: Tensor, head: Head, teacher: TeacherRows | None = None) -> dict[str, Tensor]:
            return self.term_sums(batch, weights, states, head, teacher)

        found = self.read_both(batch, sums) if self.needs_teacher else self.read(batch, sums)
        return found, weights.sum().round()

    def term_sums(
        self, batch: TextBatch, weights: Tensor, states: Tensor, head: Head, teacher: TeacherRows | None
    ) -> dict[str, Tensor]:
        """The weighted sum of each term; a method with terms of several tokens adds them here."""
        return self.chunked_sums(self.token_losses(batch, teacher), weights, states, head)

    def read_both(self, batch: TextBatch, read: Any) -> Any:
        """``read(states, head, teacher)``: as :meth:`read`, with the teacher's logits of completion tokens beside."""
        if self.teacher == "adapter_off":
            read = self._beside_adapter_off(batch, read)
        elif isinstance(self.teacher, FrozenTeacher):
            read = self._beside_network(batch, self.teacher, read)
        return self.read(batch, read)

    def _beside_adapter_off(self, batch: TextBatch, sums: Any) -> Any:
        """The teacher's states first, as its pass may not lie inside of the student's, which is the same module."""
        with torch.no_grad(), eval_mode(self.network), self.network.disable_adapter():
            theirs = self.student(lambda states, head: states, **self.teacher_inputs(batch))  # type: ignore[misc]

        def read(states: Tensor, head: Head) -> Any:
            def teacher(rows: slice | Tensor) -> Tensor:
                with torch.no_grad(), self.network.disable_adapter():
                    return head(theirs[rows])

            return sums(states, head, teacher)

        return read

    def _beside_network(self, batch: TextBatch, network: FrozenTeacher, sums: Any) -> Any:
        """The teacher's pass inside of the student's: FSDP has the weights of both heads gathered there alone."""

        def read(states: Tensor, head: Head) -> Any:
            graph = torch.is_grad_enabled()

            def read_teacher(theirs: Tensor, their_head: Head) -> Any:
                def teacher(rows: slice | Tensor) -> Tensor:
                    with torch.no_grad():
                        return their_head(theirs[rows])

                with torch.set_grad_enabled(graph):
                    return sums(states, head, teacher)

            return network(read_teacher, **self.teacher_inputs(batch))

        return read
