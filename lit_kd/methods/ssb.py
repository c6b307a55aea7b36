"""Semantic soft bootstrapping: a language model teaches itself from its own right and wrong answers.

Mitra and Ulukus, arXiv:2512.05105. Four stages, each a command that goes on after a kill:

1. ``Rollouts``: K answers of the model to each problem;
2. ``Refinement``: with a right and a wrong answer of its own in the prompt, the model writes a robust solution;
3. ``TeacherLogits``, optional: the distributions of the model, as it saw those hints, over each token of the solution;
4. ``SSBDistill``: the model without hints learns these distributions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_kd.checks import check_choice, check_positive, check_share, check_whole
from lit_kd.language.engines import Sampling
from lit_kd.language.hints import acceptable
from lit_kd.language.records import Records, Row, read_records
from lit_kd.language.teacher_files import write_logprobs
from lit_kd.losses import generalized_jsd, topk_kl
from lit_kd.methods.encoder_fine_tuning import entry
from lit_kd.methods.language import Head, LanguageModel, TokenLoss, completion_inputs
from lit_kd.methods.language_distill import Divergence, LanguageDistill, TeacherRows
from lit_kd.methods.rollouts import Rollouts, problems
from lit_kd.models.card import Paper
from lit_kd.models.fingerprint import weights_fingerprint
from lit_kd.models.text import TextBatch

PAPERS = (
    Paper(
        "Semantic Soft Bootstrapping: Long Context Reasoning in LLMs without Reinforcement Learning",
        "Purbesh Mitra and Sennur Ulukus",
        2025,
        "2512.05105",
    ),
)

REFINEMENT = Sampling(temperature=0.4, top_k=50)  # as published


class Refinement(Rollouts):
    """``predict`` writes a solution of each problem by a model that sees a right and a wrong answer of its own.

    The data are :class:`lit_kd.datamodules.HintsDataModule`. A solution is accepted if it ends by itself, gives one
    answer, the gold one, and does not mention that it was shown others; else it is drawn again, ``attempts`` times in
    all. A row holds the problem, the two prompts, the solution's token ids and text, and ``reason``: why the last one
    was not accepted, or None.

    Args:
        folder: see :class:`Rollouts`.
        sampling: one answer each; the published temperature is 0.4, top_k 50.
        attempts: the published code has one.
        official: accept as published, by the text of the last box alone.
        **settings: see :class:`lit_kd.methods.LanguageModel`.

    Raises:
        ValueError: several samples, no attempt.
    """

    def __init__(
        self, folder: str, sampling: Sampling = REFINEMENT, attempts: int = 4, official: bool = False, **settings: Any
    ) -> None:
        super().__init__(folder, sampling, **settings)
        check_choice((1,), samples=self.sampling.samples)
        check_whole(attempts=attempts)
        self.attempts, self.official = attempts, official

    def manifest(self) -> dict[str, Any]:
        """What decides on the rows."""
        return {**super().manifest(), "attempts": self.attempts, "official": self.official}

    def rows(self, batch: TextBatch) -> list[Row]:
        """A row for each problem, but for those that a server failed to answer."""
        rows = problems(batch)
        left = rows
        for attempt in range(self.attempts):
            sampling = replace(self.sampling, seed=self.sampling.seed + attempt)
            answers = self.engine.generate([row["prompt"] for row in left], sampling, [row["index"] for row in left])
            for row, (answer,) in zip(left, answers, strict=True):
                reason = acceptable(answer.text, answer.finish_reason, row["gold"], self.kind, official=self.official)
                row |= {"ids": answer.ids, "text": answer.text, "reason": reason, "attempts": attempt + 1}
            left = [row for row in left if row["reason"] is not None]
            if not left:
                break
        return [row for row in rows if row["reason"] != "finish reason error"]


class TeacherLogits(LanguageModel):
    """``predict`` writes the teacher's distribution over each token of the accepted solutions.

    The teacher saw the hints. Of its softmax at ``temperature`` the ``top_k`` largest log-probabilities are kept, one
    file of safetensors a solution: ``indices`` int32 (R, k), ``logprobs`` float32 (R, k), R tokens. The rest of the
    probability is one minus their sum, and :func:`lit_kd.losses.topk_kl` takes it as one class. Rows beside the files
    say the captured ``mass``; below 0.95 on average there is a warning. A kill loses nothing.

    Args:
        network: the teacher, the model that wrote the solutions.
        folder: for the files.
        temperature: of the training: distributions at another one can't be had from these files.
        top_k: classes kept for each token.
        **settings: see :class:`lit_kd.methods.LanguageModel`.
    """

    def __init__(
        self, network: nn.Module, folder: str, temperature: float = 2.0, top_k: int = 128, **settings: Any
    ) -> None:
        super().__init__(network, **settings)
        check_positive(temperature=temperature)
        check_whole(top_k=top_k)
        self.folder, self.temperature, self.top_k = folder, temperature, top_k
        self.weights = weights_fingerprint(network)  # here, as the strategy may shard them

    def on_predict_start(self) -> None:
        """Open the folder."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        check_writer(self.weights, data)
        manifest = {
            "stage": type(self).__name__,
            "weights": self.weights,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "data": data.describe(),
        }
        self.records = Records(self.folder, manifest, self.global_rank)
        self.trainer.strategy.barrier()

    def predict_step(self, batch: TextBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Write the files of a batch, unless they are all there."""
        if set(batch["index"].tolist()) <= self.records.done:
            return
        logprobs, indices = self.read(completion_inputs(batch, "teacher_"), self.largest)
        lengths = batch["teacher_completion_mask"].sum(1).tolist()
        rows = []
        for number, *kept in zip(batch["index"].tolist(), logprobs.split(lengths), indices.split(lengths), strict=True):
            write_logprobs(self.folder, number, *kept)
            rows.append({"index": number, "tokens": len(kept[0]), "mass": float(kept[0].exp().sum(1).mean())})
        self.records.append(rows)  # after the files: what is done is there

    def largest(self, states: Tensor, head: Head) -> tuple[Tensor, Tensor]:
        """The largest log-probabilities and their classes, (N, k) each, on the CPU."""
        found = []
        for part in states.split(self.chunk):
            scaled = head(part).float() / self.temperature
            logprobs = scaled - scaled.logsumexp(1, keepdim=True)
            found.append([kept.cpu() for kept in logprobs.topk(min(self.top_k, logprobs.shape[1]))])
        values, classes = zip(*found, strict=True)
        return torch.cat(values), torch.cat(classes)

    def on_predict_end(self) -> None:
        """Say what the kept classes hold of the probability."""
        rows = read_records(self.folder)
        mass = sum(row["tokens"] * row["mass"] for row in rows) / sum(row["tokens"] for row in rows)
        if mass < 0.95:
            rank_zero_warn(
                f"The top_k={self.top_k} classes hold {mass:.1%} of the teacher's probability at "
                f"temperature={self.temperature}: keep more, or the rest counts as one class."
            )


class SSBDistill(LanguageDistill):
    """Train the model without hints towards its own distributions with them.

        loss = kd_weight tau^2 / N sum over reply tokens of D(p || q) + ce_weight CE
        p = softmax(z_teacher / tau), q = softmax(z_student / tau)

    D is the forward KL divergence, or with ``beta`` the generalized Jensen-Shannon divergence. Both see the same reply
    tokens, which are the ids that the teacher drew, the teacher behind the hint prompt and the student behind the
    problem alone; see :class:`lit_kd.datamodules.SSBDataModule`. ``kd_weight=0, ce_weight=1`` is plain fine-tuning on
    the same texts, without a teacher's pass.

    Recipe (published code): LoRA of rank 32 and alpha 32 on all linear layers, AdamW 2e-4, no weight decay, linear
    decay, batches of 4, 3 epochs, gradient clipping at 1.0, tau = 2, kd_weight 1, ce_weight 0.

    Args:
        network: the student, of :func:`lit_kd.models.causal_lm`.
        teacher: "adapter_off": the network without its LoRA adapter, at no memory of its own; "offline": the files of
            :class:`TeacherLogits`; or a network, frozen and not saved again.
        temperature: tau.
        kd_weight: of the distillation.
        ce_weight: of the cross entropy, at temperature 1, on the same tokens.
        beta: 0 is KL(p || q), 1 KL(q || p), between them ``beta KL(p || m) + (1 - beta) KL(q || m)``.
        **settings: see :class:`lit_kd.methods.LanguageModel`.

    Raises:
        ValueError: a number out of range, no term left, "adapter_off" without an adapter, "offline" with a beta or, in
            training, without files or with those of another temperature.
    """

    papers = PAPERS

    named_teachers = ("adapter_off", "offline")

    def __init__(
        self,
        network: nn.Module,
        teacher: Literal["adapter_off", "offline"] | nn.Module = "adapter_off",
        temperature: float = 2.0,
        kd_weight: float = 1.0,
        ce_weight: float = 0.0,
        beta: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(network, teacher, temperature, kd_weight, ce_weight, **settings)  # type: ignore[arg-type]
        check_share(beta=beta)
        if teacher == "offline" and beta:
            raise ValueError(f'teacher="offline" keeps the largest classes only, which beta={beta} needs all: set 0.')
        if teacher == "adapter_off":
            self.weights = weights_fingerprint(network, adapter=False)  # here, as the strategy may shard them
        self.beta = beta

    def on_fit_start(self) -> None:
        """See that the solutions are the network's own, and stored distributions of this temperature."""
        super().on_fit_start()
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.teacher == "adapter_off" and self.kd_weight:
            check_writer(self.weights, data)
        if self.teacher == "offline" and self.kd_weight:
            stored = getattr(data, "teacher_temperature", None)
            if stored != self.temperature:
                raise ValueError(
                    f"The data have teacher logits at temperature {stored}, not at temperature={self.temperature}: "
                    "give teacher_logits, written at the temperature of the training."
                )

    def teacher_inputs(self, batch: TextBatch) -> dict[str, Tensor]:
        """The hint prompt and the same completion."""
        return completion_inputs(batch, "teacher_")

    def divergence(self, batch: TextBatch) -> Divergence:
        """D of each token."""
        settings: Any = {"temperature": self.temperature, "beta": self.beta, "reduction": "none"}
        return lambda student, teacher, rows: generalized_jsd(student, teacher, **settings)

    def token_losses(self, batch: TextBatch, teacher: TeacherRows | None = None) -> dict[str, TokenLoss]:
        """Divergence from the teacher's logits, or from the batch's stored log-probabilities, and cross entropy."""
        losses = super().token_losses(batch, teacher)
        if self.kd_weight and self.teacher == "offline":
            factor, divergence = self.kd_weight * self.temperature**2, self.from_stored(batch)
            losses["kd"] = lambda logits, rows: factor * divergence(logits, rows)
        return losses

    def from_stored(self, batch: TextBatch) -> TokenLoss:
        """KL over the stored classes and the rest as one class: at most the whole KL."""
        indices, logprobs = entry(batch, "teacher_indices"), entry(batch, "teacher_logprobs")
        settings: Any = {"temperature": self.temperature, "reduction": "none"}
        return lambda logits, rows: topk_kl(logits, indices[rows], logprobs[rows], **settings)


def check_writer(weights: str, data: Any) -> None:
    """Raise a ValueError where the data's solutions are known to be of a network with another fingerprint."""
    manifest = data.describe().get("refined", {}) if hasattr(data, "describe") else {}
    writer = manifest.get("engine", {}).get("weights")
    if writer not in (None, weights):
        raise ValueError(
            f"The solutions in {data.folder} were written by a network of other weights (fingerprint {writer}, not "
            f"{weights}): give that network, or run the stages again."
        )
