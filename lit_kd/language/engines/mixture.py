"""Generation by two networks at once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_kd.checks import check_network, check_share
from lit_kd.language.engines.hugging_face import TransformersEngine
from lit_kd.models.causal import whole_network

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class MixedEngine(TransformersEngine):
    """Each token is drawn from a mixture, ``share p + (1 - share) q`` (MiniLLM, Gu et al., arXiv:2306.08543).

    q is the distribution of ``network``, p that of ``other``, over the same tokens so far; both keep a cache. Settings
    of :class:`Sampling`, such as the temperature, act on the mixture. All else is as in :class:`TransformersEngine`.

    Args:
        network: the student.
        tokenizer: of both.
        other: the teacher, in eval mode; ``network`` itself: as it is without its adapter.
        share: of the teacher, in [0, 1].
        batch_size: completions written at once.

    Raises:
        ValueError: a share out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        other: nn.Module,
        share: float,
        batch_size: int = 16,
    ) -> None:
        super().__init__(network, tokenizer, batch_size)
        check_network(other=other)
        check_share(share=share)
        self.share, self.other = share, other

    def processors(self, prompt_mask: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """The mixture, which then stands for the student's logits."""
        return [_Mixture(self.other, self.share, prompt_mask, self.other is self.network)]


class _Mixture:
    """A logits processor; the teacher reads a batch along with ``generate``, with a cache of its own."""

    def __init__(self, other: Any, share: float, mask: Tensor, adapter_off: bool) -> None:
        self.network, self.mask = whole_network(other), mask
        self.as_teacher = other.disable_adapter if adapter_off else nullcontext
        self.known = inspect.signature(self.network.forward).parameters
        self.cache_name = "cache" if "cache" in self.known else "past_key_values"  # the one before transformers 5.20
        self.shares = [math.log(part) if part else -math.inf for part in (share, 1 - share)]
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids if self.cache is None else input_ids[:, -1:]
        self.mask = F.pad(self.mask, (0, input_ids.shape[1] - self.mask.shape[1]), value=1)
        inputs = {"input_ids": new, "attention_mask": self.mask, "use_cache": True, self.cache_name: self.cache}
        if "position_ids" in self.known:
            inputs["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        with self.as_teacher():
            found = self.network(**inputs)
        self.cache = found[self.cache_name]
        teacher = found.logits[:, -1].float().log_softmax(-1)[:, : scores.shape[1]]
        teacher = F.pad(teacher, (0, scores.shape[1] - teacher.shape[1]), value=-torch.inf)
        student = scores.float().log_softmax(-1)
        return torch.logaddexp(teacher + self.shares[0], student + self.shares[1])
