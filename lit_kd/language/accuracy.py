"""How often sampled answers are right: pass@k and its interval over the problems."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_kd.intervals import bootstrap_interval, wilson_interval


def pass_at_k(right: Tensor, samples: int, k: int) -> Tensor:
    """Probability that k answers, drawn without replacement from ``samples`` of a problem, hold a right one.

    ``1 - C(n - c, k) / C(n, k)``, the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, section 2.1).

    Args:
        right: right answers c of each problem, (N,).
        samples: answers n of each problem.
        k: 1 to n; pass@1 is the mean over the answers, which is avg@n.

    Returns:
        float64 (N,).

    Raises:
        ValueError: k is out of range.

    Example:
        >>> pass_at_k(torch.tensor([0, 1, 2, 4]), samples=4, k=2)
        tensor([0.0000, 0.5000, 0.8333, 1.0000], dtype=torch.float64)
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k={k} must lie between 1 and the {samples} answers of a problem.")
    ways = torch.tensor([math.comb(samples - c, k) for c in range(samples + 1)], dtype=torch.float64)
    return 1 - ways[right.cpu().long()] / math.comb(samples, k)


class AnswerAccuracy(Metric):
    """Right answers of problems, several answers each, over all processes.

    ``compute`` gives, in fractions: ``pass@1`` (the mean over all answers, avg@n) with ``pass@1_low`` and
    ``pass@1_high`` (95 %: Wilson's interval of one answer a problem, else a bootstrap over problems), ``pass@k`` for
    k = 2, 4, ... up to n, ``flexible`` (pass@1 where the answer may stand anywhere), ``unparsable`` and ``finished``
    (shares of answers), ``tokens`` (mean length of an answer) and ``problems``.

    Args:
        samples: answers of each problem, n.
    """

    full_state_update = False

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.rows: list[Tensor]
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, strict: Tensor, flexible: Tensor, parsed: Tensor, finished: Tensor, tokens: Tensor) -> None:
        """Take (problems, n) of each."""
        columns = (strict, flexible, parsed, finished, tokens)
        self.rows.append(torch.stack([column.double().sum(1) for column in columns], 1).to(self.device))

    def compute(self) -> dict[str, Any]:
        """The numbers by name."""
        strict, flexible, parsed, finished, tokens = dim_zero_cat(self.rows).cpu().unbind(1)
        count, n = len(strict), self.samples
        first = pass_at_k(strict, n, 1)
        low, high = wilson_interval(int(strict.sum()), count) if n == 1 else bootstrap_interval(first)
        powers = [2**i for i in range(1, n.bit_length())]
        return {
            "pass@1": float(first.mean()),
            "pass@1_low": low,
            "pass@1_high": high,
            **{f"pass@{k}": float(pass_at_k(strict, n, k).mean()) for k in dict.fromkeys([*powers, n]) if 1 < k <= n},
            "flexible": float(flexible.mean()) / n,
            "unparsable": 1 - float(parsed.mean()) / n,
            "finished": float(finished.mean()) / n,
            "tokens": float(tokens.mean()) / n,
            "problems": float(count),
        }
