"""What all engines take and give, and random numbers that belong to a completion."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lit_kd.checks import check_not_negative, check_positive, check_share, check_whole
from lit_kd.language.chat import Prompt


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Nothing else decides: the settings that come with a checkpoint do not count.

    Attributes:
        max_new_tokens: At which a completion is cut, with ``finish_reason`` "length".
        temperature: 0: greedy, the most probable token.
        top_k: Only the k most probable tokens; 0: all.
        top_p: Only the most probable tokens that together reach this probability.
        min_p: Only tokens at least this probable, as a fraction of the most probable one.
        repetition_penalty: Divides positive logits of tokens seen in prompt or completion, multiplies negative ones.
        samples: Completions of each prompt.
        seed: With the prompt's key and the number of the sample it gives all draws.

    Raises:
        ValueError: A value out of its range.
    """

    max_new_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(max_new_tokens=self.max_new_tokens, samples=self.samples)
        check_whole(0, top_k=self.top_k, seed=self.seed)
        check_not_negative(temperature=self.temperature)
        check_positive(repetition_penalty=self.repetition_penalty)
        check_share("(0, 1]", top_p=self.top_p)
        check_share(min_p=self.min_p)


@dataclass(frozen=True)
class Completion:
    """What an engine wrote.

    Attributes:
        text: Without special tokens.
        finish_reason: "stop": ended by itself; "length": cut; "error": a server gave no usable answer.
        ids: The tokens as they were drawn, with the end token if it stopped; None where the engine does not tell.
        prompt_tokens: Length of the prompt.
        completion_tokens: Length of the completion, end token included.
    """

    text: str
    finish_reason: Literal["stop", "length", "error"]
    ids: tuple[int, ...] | None
    prompt_tokens: int
    completion_tokens: int


class Engine(ABC):
    """Anything that completes prompts."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[int] | None = None,
        budgets: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """``sampling.samples`` completions of each prompt, in order.

        Args:
            prompts: Texts as they are, chats, or tuples of token ids, where the engine takes them.
            sampling: How to draw.
            keys: A number from 0 for each prompt, such as its position in a data set: draws are a function of seed,
                key, number of the sample and position in the completion. Default: the position in ``prompts``.
            budgets: Most new tokens of each prompt, where they are fewer than ``sampling.max_new_tokens``: what reaches
                its own is cut there ("length").

        Raises:
            ValueError: Not one key or budget for each prompt, or one out of range.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a manifest needs to tell one engine from another; no secrets."""


def draws(
    prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[int] | None
) -> Iterator[tuple[int, int, list[int]]]:
    """Position of the prompt, number of the sample and (seed, key, sample) of each completion.

    Raises:
        ValueError: not one key for each prompt, or a negative one.
    """
    keys = range(len(prompts)) if keys is None else keys
    if len(keys) != len(prompts) or any(key < 0 for key in keys):
        raise ValueError(f"keys must be a number from 0 for each of {len(prompts)} prompts, got {list(keys)[:8]}.")
    for position, key in enumerate(keys):
        for sample in range(sampling.samples):
            yield position, sample, [sampling.seed, key, sample]


def limits(prompts: Sequence[Prompt], sampling: Sampling, budgets: Sequence[int] | None) -> list[int]:
    """Most new tokens of each prompt.

    Raises:
        ValueError: not one budget for each prompt, or one below 1.
    """
    if budgets is None:
        return [sampling.max_new_tokens] * len(prompts)
    if len(budgets) != len(prompts) or any(budget < 1 for budget in budgets):
        raise ValueError(
            f"budgets must be a number from 1 for each of {len(prompts)} prompts, got {list(budgets)[:8]}."
        )
    return [min(sampling.max_new_tokens, budget) for budget in budgets]


def uniforms(draw: Sequence[int], count: int) -> np.ndarray:
    """The first ``count`` uniforms in [0, 1) of a completion, float64: a function of its three numbers alone."""
    bits = np.random.Philox(np.random.SeedSequence(draw)).random_raw(count)
    return (bits >> 16) * 2.0**-48  # 48 bits: a product with a sum of probabilities stays below it


def request_seed(draw: Sequence[int]) -> int:
    """A seed below 2^31 for an engine that draws by itself."""
    return int(np.random.SeedSequence(draw).generate_state(1)[0] >> 1)
