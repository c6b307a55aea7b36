"""What the fine-tuning methods of text encoders share: the teacher, the inputs of each network, the recipe."""

import math
from abc import ABC
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lit_kd.checks import check_network, check_positive, check_share
from lit_kd.methods.base import Distill
from lit_kd.methods.schedules import warmup_linear
from lit_kd.models.compiled import unwrapped
from lit_kd.models.teacher import FrozenTeacher
from lit_kd.models.text import TextBatch, check_tokenizers


class EncoderFineTune(Distill, ABC):
    """Fine-tuning of a text encoder with a head, by labels alone or with a fine-tuned teacher beside them.

    With a teacher the loss is ``(1 - kd_weight) * task + kd_weight * kd``.

    Recipe (MiniLM, arXiv:2002.10957, appendix; BERT, arXiv:1810.04805): AdamW, weight decay 0.01 except on biases and
    layer norms, linear warm-up over a tenth of the steps, then linear decay to 0, by step. Gradient clipping is the
    trainer's: ``gradient_clip_val: 1.0``.

    Args:
        network: of Hugging Face with a head for the task.
        teacher: likewise, fine-tuned; frozen, and not saved again.
        temperature: of the distillation loss; with the weight below as in Hugging Face's DistilBERT example.
        kd_weight: of the distillation loss, in [0, 1]; the task has the rest.
        lr: peak rate of the default optimizer.
        optimizer: see :class:`Distill`.
        lr_scheduler: see :class:`Distill`.

    Raises:
        ValueError: a temperature or rate that is not positive, a weight outside [0, 1], two tokenizers,
            a network that is its own teacher.
    """

    schedule_interval = "step"

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module | None = None,
        temperature: float = 2.0,
        kd_weight: float = 0.5,
        lr: float = 2e-5,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_network(network=network)
        check_positive(temperature=temperature, lr=lr)
        check_share(kd_weight=kd_weight)
        if teacher is network:
            raise ValueError("network and teacher are one object, and the teacher is frozen: build two.")
        if teacher is not None:
            check_network(teacher=teacher)
            check_tokenizers(network=network, teacher=teacher)
        self.network = unwrapped(network)
        self.teacher = None if teacher is None else FrozenTeacher(teacher)
        self.temperature, self.kd_weight = temperature, kd_weight
        self.lr = lr

    def weighted(self, task: dict[str, Tensor], distillation: Tensor) -> dict[str, Tensor]:
        """Terms of the loss with a teacher."""
        weight = self.kd_weight
        return {**{name: (1 - weight) * value for name, value in task.items()}, "kd": weight * distillation}

    # Recipe

    def default_optimizer(self, parameters: Any) -> Optimizer:
        """AdamW, weight decay 0.01 on matrices."""
        return AdamW(matrices_and_vectors(parameters, 0.01), lr=self.lr)

    def default_scheduler(self, optimizer: Optimizer) -> LRScheduler:
        """Linear warm-up over a tenth of the steps, linear decay to 0."""
        return self.schedule_by_step(optimizer, lambda step, steps: warmup_linear(step, steps, math.ceil(steps / 10)))


def matrices_and_vectors(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with weight decay on matrices only: every vector of an encoder is a bias or of a layer norm."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def entry(batch: TextBatch, name: str) -> Tensor:
    """A tensor of the batch; a ValueError where it is missing."""
    if not isinstance(batch, Mapping) or name not in batch:
        found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"The batch has no {name!r} (it has {found}): it must be a dict of the tokenizer's tensors, targets and "
            "'index'; without targets there is only predict."
        )
    return batch[name]
