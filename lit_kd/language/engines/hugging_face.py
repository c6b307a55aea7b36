"""Generation by the network in this process, in batches whose make-up does not change the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_kd.checks import check_network, check_whole
from lit_kd.language.chat import Example, Prompt, collate, encode_prompt, end_tokens
from lit_kd.language.engines.sampling import Completion, Engine, Sampling, draws, limits, uniforms
from lit_kd.models.causal import whole_network
from lit_kd.models.modes import eval_mode
from lit_kd.models.text import longest_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TransformersEngine(Engine):
    """Hugging Face's ``generate`` with its cache, for any causal network of transformers, with or without an adapter.

    Each completion has random numbers of its own, so it does not depend on the batch size, on other prompts or on
    their order, up to rounding: the logits of a row differ in their last digits from batch to batch, which is seen
    where a draw falls on the border of two tokens (in float32 hardly ever, in bfloat16 now and then).

    The network may be one that is being trained: modes, gradient checkpointing, its generation config and the
    process's random state are as before afterwards. Under DDP give the network that is wrapped; each process may
    generate as many prompts as it likes.

    Args:
        network: on its device; a sharded one is refused, as its ranks would have to take every step together.
        tokenizer: as :func:`lit_kd.language.chat.lm_tokenizer` loads it.
        batch_size: completions written at once.
    """

    def __init__(self, network: nn.Module, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> None:
        check_network(network=network)
        check_whole(batch_size=batch_size)
        self.network, self.tokenizer, self.batch_size = network, tokenizer, batch_size

    def describe(self) -> dict[str, Any]:
        """The network's path, its class and precision."""
        base = whole_network(self.network)
        path = getattr(self.network, "tokenizer_path", None) or getattr(base.config, "_name_or_path", "")
        dtype = str(next(base.parameters()).dtype).removeprefix("torch.")
        return {"kind": "transformers", "model": path, "class": type(base).__name__, "dtype": dtype}

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """See :class:`Engine`. A completion that reaches the end of the network's context is cut there ("length").

        Prompts of different budgets share batches.

        Raises:
            ValueError: a prompt that fills the context, or that can't be encoded; a sharded network.
        """
        base = whole_network(self.network)
        if any(isinstance(parameter, DTensor) for parameter in base.parameters()):
            raise ValueError("The network is sharded: generate before or after the training, in a stage of its own.")
        wanted = limits(prompts, sampling, budgets)
        encoded = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        context = longest_sequence(base)
        most = [_within(context, ids, n, limit) for n, (ids, limit) in enumerate(zip(encoded, wanted, strict=True))]
        rows = [
            _Row(position, sample, encoded[position], most[position], draw)
            for position, sample, draw in draws(prompts, sampling, keys)
        ]
        rows.sort(key=lambda row: -len(row.prompt))  # little padding, and the largest batch comes first
        results: list[list[Any]] = [[None] * sampling.samples for _ in prompts]
        for batch in _batches(rows, self.batch_size, context):
            for row, completion in zip(batch, self._complete(base, batch, sampling), strict=True):
                results[row.position][row.sample] = completion
        return results

    def processors(self, prompt_mask: Tensor) -> list[Callable[[Tensor, Tensor], Tensor]]:
        """What changes a batch's logits before a token is drawn of them; prompt_mask (B, width) is 0 for padding."""
        return []

    def _complete(self, network: Any, rows: list[_Row], sampling: Sampling) -> Iterator[Completion]:
        from transformers import GenerationConfig

        pad = self.tokenizer.pad_token_id or 0
        batch = collate([Example(row.prompt, []) for row in rows], pad, side="left")
        device = next(network.parameters()).device
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        ends = end_tokens(self.tokenizer, network)
        steps = max(row.limit for row in rows)
        settings = {"max_new_tokens": steps, "do_sample": False, "use_cache": True}
        config = GenerationConfig(**settings, eos_token_id=list(ends), pad_token_id=pad)
        random = np.stack([uniforms(row.draw, steps) for row in rows])
        choose = _Choose(sampling, mask.bool(), torch.from_numpy(random).to(device))
        processors = [*self.processors(mask), choose]
        stop = _StopAt([ids.shape[1] + row.limit for row in rows], ends[0])
        with _generating(network, config):
            written = network.generate(
                input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=[*processors, stop]
            )
        for row, tokens in zip(rows, written[:, ids.shape[1] :].tolist(), strict=True):
            end = next((i for i, token in enumerate(tokens[: row.limit]) if token in ends), None)
            tokens = tokens[: row.limit if end is None else end + 1]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            reason: Any = "length" if end is None else "stop"
            yield Completion(str(text), reason, tuple(tokens), len(row.prompt), len(tokens))


@dataclass(frozen=True)
class _Row:
    position: int
    sample: int
    prompt: list[int]
    limit: int  # of new tokens
    draw: list[int]


def _within(context: int | None, prompt: list[int], number: int, limit: int) -> int:
    """How many of ``limit`` new tokens fit into the context."""
    if not prompt:
        raise ValueError(f"Prompt {number} is empty: nothing would predict its first token.")
    if context is None:
        return limit
    if len(prompt) >= context:
        raise ValueError(
            f"Prompt {number} has {len(prompt)} tokens, which leaves no room in the {context} positions of the network."
        )
    return min(limit, context - len(prompt))


def _batches(rows: list[_Row], size: int, context: int | None) -> Iterator[list[_Row]]:
    """Neighbours, up to ``size`` of them; no row is led beyond the context by the steps that another one takes."""
    batch: list[_Row] = []
    for row in rows:
        together = [*batch, row]
        longest = max(len(one.prompt) for one in together) + max(one.limit for one in together)
        if batch and (len(batch) == size or (context is not None and longest > context)):
            yield batch
            together = [row]
        batch = together
    if batch:
        yield batch


def drawn(logits: Tensor, uniforms: Tensor) -> Tensor:
    """A token of each row (N,) of logits (N, V): the inverse of its distribution function, in float64, at u in [0, 1).

    Raises:
        FloatingPointError: logits are NaN.

    Example:
        >>> drawn(torch.tensor([[0.25, 0.5, 0.25]]).log().expand(4, 3), torch.tensor([0.0, 0.3, 0.7, 0.8]))
        tensor([0, 1, 1, 2])
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    place = uniforms.double()[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, place, right=True)[:, 0]  # the first whose cumulative probability is above
    if (token == logits.shape[-1]).any():
        raise FloatingPointError("Logits that a token is to be drawn from are not finite")
    return token


class _Choose:
    """A logits processor that leaves one token of each row: drawn by the row's own uniforms, or as it is if greedy.

    ``generate`` itself takes the largest logit.
    """

    def __init__(self, sampling: Sampling, prompt_mask: Tensor, random: Tensor) -> None:
        import transformers as hf

        warpers: list[Callable[..., Tensor]] = []
        if sampling.repetition_penalty != 1:
            warpers.append(hf.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        self.greedy = sampling.temperature == 0
        if not self.greedy:  # in the order of generate
            if sampling.temperature != 1:
                warpers.append(hf.TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                warpers.append(hf.TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                warpers.append(hf.TopPLogitsWarper(sampling.top_p))
            if sampling.min_p:
                warpers.append(hf.MinPLogitsWarper(sampling.min_p))
        self.warpers, self.prompt_mask, self.random = warpers, prompt_mask, random

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        width = self.prompt_mask.shape[1]
        # Padding is no token that was seen: in its place stands the last one of the prompt.
        prompt = input_ids[:, :width].where(self.prompt_mask, input_ids[:, width - 1 : width])
        seen = torch.cat([prompt, input_ids[:, width:]], 1)
        for warper in self.warpers:
            scores = warper(seen, scores)
        if self.greedy:
            return scores
        token = drawn(scores, self.random[:, input_ids.shape[1] - width])
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


class _StopAt:
    """A logits processor that lets a row end where its own limit is, though its batch goes on."""

    def __init__(self, lengths: list[int], end: int) -> None:
        self.lengths, self.end = lengths, end  # of prompt and completion, with the padding in front

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        over = [row for row, length in enumerate(self.lengths) if length <= input_ids.shape[1]]
        if over:
            scores = scores.clone()
            scores[over] = -torch.inf
            scores[over, self.end] = 0.0
        return scores


@contextmanager
def _generating(network: Any, config: Any) -> Iterator[None]:
    """Eval mode, no gradient checkpointing, and no generation config of the checkpoint's to fill gaps from."""
    recomputing = [part for part in network.modules() if getattr(part, "gradient_checkpointing", False)]
    own, network.generation_config = network.generation_config, config
    try:
        for part in recomputing:
            part.gradient_checkpointing = False
        # The next token is one step of a growing cache: compiled layers would be compiled again and again for it.
        with eval_mode(network), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        network.generation_config = own
        for part in recomputing:
            part.gradient_checkpointing = True
