"""A loss of logits that never exist all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_kd.checks import check_whole


def chunked_loss(
    loss: Callable[[Tensor, slice], Tensor], states: Tensor, head: Callable[[Tensor], Tensor], chunk: int = 256
) -> Tensor:
    r"""Sum of ``loss(head(states[rows]), rows)`` over slices of at most ``chunk`` rows.

    Value and gradients are taken here, slice by slice; the backward only scales them. So the logits of all rows,
    (N, V), never exist, and nothing is computed twice. Autograd differentiates each slice: the head may have a bias, a
    soft cap or an adapter, and gradients go to the states and to every parameter that head or loss use and that
    requires one. Tensors that loss takes from outside must be parameters or have no graph. Gradients are taken before
    the outer loss's scale is known: float16 may underflow, bfloat16 does not.

    Args:
        loss: of logits (n, V) and the slice of the rows they belong to, the scalar sum over these rows. A teacher's
            head is best called in here.
        states: (N, H), the rows that count. If N is 0, loss is called once, with no rows.
        head: states (n, H) to logits (n, V).
        chunk: rows of logits held at once.

    Raises:
        ValueError: a chunk below 1, states that are not (N, H), or a loss that is not a scalar.

    Example:
        >>> from lit_kd.losses import forward_kl
        >>> states, teacher_states, head = torch.randn(5, 4), torch.randn(5, 4), torch.nn.Linear(4, 9)
        >>> def loss(logits, rows):
        ...     return forward_kl(logits, head(teacher_states[rows]), reduction="sum")
        >>> whole = forward_kl(head(states), head(teacher_states), reduction="sum")
        >>> torch.allclose(chunked_loss(loss, states, head, chunk=2), whole)
        True
    """
    check_whole(chunk=chunk)
    if states.ndim != 2:
        raise ValueError(f"states must be (N, H), the rows that count, got {tuple(states.shape)}")
    differentiate = torch.is_grad_enabled()
    follow_states = differentiate and states.requires_grad
    gradients = {states: torch.zeros_like(states)} if follow_states else {}
    total: Tensor | float = 0.0
    for start in range(0, max(len(states), 1), chunk):
        rows = slice(start, min(start + chunk, len(states)))
        part = states[rows].detach().requires_grad_(follow_states)
        value = loss(head(part), rows)
        if value.ndim:
            raise ValueError(f"loss must return the scalar sum over its rows, got shape {tuple(value.shape)}")
        total = total + value.detach()
        for leaf, gradient in _gradients(value):
            if leaf is part:
                gradients[states][rows] += gradient
                continue
            if leaf not in gradients:
                gradients[leaf] = torch.zeros_like(leaf)  # of its own: autograd may give two leaves one tensor
            gradients[leaf] += gradient
    return _Known.apply(total, tuple(gradients.values()), *gradients)


def _gradients(value: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The tensors at which the graph of a value ends, with its gradients in them."""
    leaves: list[Tensor] = []
    seen: set[Any] = {None}
    nodes: list[Any] = [value.grad_fn]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            leaves.append(node.variable)
        nodes += [following for following, _ in node.next_functions]
    if not leaves:
        return []
    with torch.autocast(value.device.type, enabled=False):
        found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [(leaf, gradient) for leaf, gradient in zip(leaves, found, strict=True) if gradient is not None]


class _Known(torch.autograd.Function):
    """A value whose gradients are known."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * known for known in ctx.saved_tensors)
