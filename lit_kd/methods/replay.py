"""The adaptive off-policy schedule: a replay buffer of what the student wrote."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from lit_kd.checks import check_choice, check_not_negative, check_share, check_whole
from lit_kd.language.engines import Sampling
from lit_kd.methods.sources import FREE, REPLAY, Moment, OnPolicy, TokenRow, Writer


class Replay(OnPolicy):
    """What the student writes and wrote, the more the worse it gets on held-out data (DistiLLM, arXiv:2402.03898).

    After a validation with a loss of at least ``L_prev + eps``, phi grows by ``increment``, up to 1. In each step, with
    r uniform in [0, 1) and rho = phi (1 - t / T) ("decreasing"; "constant": phi / 2; "increasing": phi t / T):

    - r < rho, or r < phi while the buffer is not full: the student writes, and the sequences go into the buffer;
    - else r < phi: a random batch of the buffer;
    - else the data.

    ``L_prev`` is the loss before training at first. The buffer is first in, first out, and each device has its own; a
    checkpoint holds those of all. Resumed on fewer devices, the buffers of the others are left out.

    Args:
        schedule: of rho.
        capacity: sequences in a device's buffer.
        initial_phi: phi at the start.
        eps: by which the loss has to rise.
        increment: of phi.
        update_prev: when ``L_prev`` becomes the last loss: as phi grows ("on_fire", as published code has it), or after
            each validation ("always").
        sampling: see :class:`OnPolicy`.
        max_length: see :class:`OnPolicy`.

    Raises:
        ValueError: as :class:`OnPolicy`; a number out of range, a name that is none of these, a buffer smaller than the
            batch.
    """

    def __init__(
        self,
        schedule: Literal["decreasing", "constant", "increasing"] = "decreasing",
        capacity: int = 1000,
        initial_phi: float = 0.0,
        eps: float = 0.1,
        increment: float = 0.1,
        update_prev: Literal["on_fire", "always"] = "on_fire",
        sampling: Sampling = FREE,
        max_length: int = 512,
    ) -> None:
        super().__init__(1.0, sampling, max_length)
        check_choice(("decreasing", "constant", "increasing"), schedule=schedule)
        check_choice(("on_fire", "always"), update_prev=update_prev)
        check_share(initial_phi=initial_phi)
        check_whole(capacity=capacity)
        check_not_negative(eps=eps, increment=increment)
        self.schedule, self.capacity, self.phi = schedule, capacity, initial_phi
        self.eps, self.increment, self.update_prev = eps, increment, update_prev
        self.previous: float | None = None
        self.buffer: deque[TokenRow] = deque(maxlen=capacity)
        self.replayed = False

    @property
    def needs_validation(self) -> bool:  # type: ignore[override]
        """Without one, phi stays 0."""
        return self.phi == 0

    def check(self, batch_size: int) -> None:
        """See that a batch can be drawn from the buffer."""
        if batch_size > self.capacity:
            raise ValueError(f"capacity={self.capacity} is less than the batch of {batch_size} sequences: raise it.")

    def validated(self, loss: float) -> None:
        """Let phi grow if the loss did."""
        if self.previous is None:
            self.previous = loss
            return
        fired = loss >= self.previous + self.eps
        if fired:
            self.phi = min(round(self.phi + self.increment, 10), 1.0)
        if fired or self.update_prev == "always":
            self.previous = loss

    def rho(self, moment: Moment) -> float:
        """Probability of a step on new sequences."""
        done = moment.step / moment.steps
        return self.phi * {"decreasing": 1 - done, "constant": 0.5, "increasing": done}[self.schedule]

    def rows(self, given: Sequence[TokenRow], moment: Moment, writer: Writer) -> list[TokenRow] | None:
        """New sequences, old ones, or None."""
        self.check(len(given))
        r = self.uniform(moment)
        full = len(self.buffer) == self.capacity
        self.written = r < self.rho(moment) or (r < self.phi and not full)
        self.replayed = r < self.phi and not self.written
        if self.written:
            rows = self.fresh(given, moment, writer)
            self.buffer.extend(rows)
            return rows
        if self.replayed:
            draw = np.random.default_rng([self.sampling.seed, REPLAY, moment.step, moment.batch, moment.rank])
            return [self.buffer[place] for place in draw.choice(self.capacity, len(given), replace=False)]
        return None

    def numbers(self) -> dict[str, float]:
        """phi, and the shares of the steps on new and on old sequences."""
        return {"phi": self.phi, "written": float(self.written), "replayed": float(self.replayed)}

    def state_dict(self) -> dict[str, Any]:
        """phi, L_prev and the buffer as three tensors."""
        lengths = [[row.index, len(row.prompt), len(row.completion)] for row in self.buffer]
        tokens = [token for row in self.buffer for token in row.prompt + row.completion]
        buffer = {
            "lengths": torch.tensor(lengths, dtype=torch.int64),
            "tokens": torch.tensor(tokens, dtype=torch.int32),
        }
        return {"phi": self.phi, "previous": self.previous, **buffer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up phi, L_prev and the buffer; of one that is too large the newest rows."""
        self.phi, self.previous = state["phi"], state["previous"]
        self.buffer.clear()
        tokens, start = state["tokens"].tolist(), 0
        for index, prompt, completion in state["lengths"].view(-1, 3).tolist():
            middle, end = start + prompt, start + prompt + completion
            self.buffer.append(TokenRow(index, tuple(tokens[start:middle]), tuple(tokens[middle:end])))
            start = end
