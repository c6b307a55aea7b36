"""Distillation through synthetic data: a student is fine-tuned on what a strong teacher has written.

Shirgaonkar, Pandey, Abay, Aktas and Aski, arXiv:2410.18588. The rows are those of :class:`lit_kd.methods.Synthesis`,
which a teacher wrote behind an elaborate prompt; :class:`lit_kd.datamodules.ChatDataModule` reads them behind the plain
one.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_kd.methods.encoder_fine_tuning import matrices_and_vectors
from lit_kd.methods.language_distill import LanguageDistill
from lit_kd.methods.schedules import cosine
from lit_kd.models.card import Paper

PAPERS = (
    Paper(
        "Knowledge Distillation Using Frontier Open-source LLMs: Generalizability and the Role of Synthetic Data",
        "Anup Shirgaonkar and Nikhil Pandey and Nazmiye Ceren Abay and Tolga Aktas and Vijay Aski",
        2024,
        "2410.18588",
    ),
)


class SyntheticDistill(LanguageDistill):
    """Fine-tune a student on a teacher's answers, without its logits or, if it runs here, with them.

        loss = -1/N sum over completion tokens of log q(token | plain prompt, tokens before it)

    That is distillation by sequences. With ``kd_weight`` and a local ``teacher`` the term by words of
    :class:`LanguageDistill` is added, over the same tokens behind the same plain prompt: one set of rows serves to
    compare ``ce_weight=1``, both terms, and ``kd_weight=1, ce_weight=0``.

    Recipe (shipped by the same group; which values the paper used is not known): a LoRA adapter of rank 8 and alpha 128
    without dropout, AdamW, betas 0.9 and 0.95, eps 1e-5, weight decay 0.1 (not of biases and norms), cosine without
    warm-up to 0, gradients clipped at 1.0, 3e-4 for one epoch; its notebooks take 2e-5 for three. Ours: the loss is a
    mean over the tokens of all devices and micro-batches, and rows may be packed.

    Args:
        network: the student, of :func:`lit_kd.models.causal_lm`, whole or with an adapter.
        teacher: see :class:`LanguageDistill`; None, as published: the rows alone.
        temperature: of the divergence.
        kd_weight: of the divergence from the teacher.
        ce_weight: of the cross entropy.
        lr: peak rate.
        **settings: see :class:`lit_kd.methods.LanguageModel`.

    Raises:
        ValueError: see :class:`LanguageDistill`.
    """

    papers = PAPERS

    def __init__(
        self,
        network: nn.Module,
        teacher: Literal["adapter_off"] | nn.Module | None = None,
        temperature: float = 1.0,
        kd_weight: float = 0.0,
        ce_weight: float = 1.0,
        lr: float = 3e-4,
        **settings: Any,
    ) -> None:
        super().__init__(network, teacher, temperature, kd_weight, ce_weight, lr=lr, **settings)

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """AdamW of the recipe; vectors, which are biases and norms, do not decay."""
        groups = [group for group in matrices_and_vectors(parameters, 0.1) if group["params"]]
        return AdamW(groups, lr=self.lr, betas=(0.9, 0.95), eps=1e-5)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Cosine to 0 by step over the planned epochs, behind ``warmup``."""
        return self.schedule_by_step(
            optimizer,
            lambda step, steps: cosine(step, steps, round(self.warmup * steps)),
            first=1.0 if self.warmup == 0 else 0.0,
        )
