"""A loss in chunks is the loss."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lit_kd.losses import chunked_loss, forward_kl, generalized_jsd

N, H, V = 10, 4, 7


class SoftCapped(nn.Linear):
    """A head with bias and a soft cap."""

    def forward(self, states: Tensor) -> Tensor:
        return 3 * torch.tanh(super().forward(states) / 3)


class Adapted(nn.Module):
    """A frozen head with a low-rank adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(H, V).requires_grad_(False)
        self.a, self.b = nn.Linear(H, 2, bias=False), nn.Linear(2, V, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.base(states) + self.b(self.a(states))


HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(H, V),
    "frozen": lambda: nn.Linear(H, V).requires_grad_(False),
    "capped": lambda: SoftCapped(H, V),
    "adapted": Adapted,
}


@pytest.fixture
def states() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(N, H, requires_grad=True), torch.randn(N, H)


def divergence(teacher_states: Tensor, teacher: nn.Module) -> Callable[[Tensor, slice], Tensor]:
    def loss(logits: Tensor, rows: slice) -> Tensor:
        return forward_kl(logits, teacher(teacher_states[rows]), temperature=2.0, reduction="sum")

    return loss


def gradients(value: Tensor, states: Tensor, head: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value, [states, *(p for p in head.parameters() if p.requires_grad)]))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunk", [1, 3, 5, 10, 512])
def test_value_and_gradients(name: str, chunk: int, states: tuple[Tensor, Tensor]) -> None:
    (student, teacher), head, theirs = states, HEADS[name](), nn.Linear(H, V)
    loss = divergence(teacher, theirs)
    whole, chunked = loss(head(student), slice(0, N)), chunked_loss(loss, student, head, chunk)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(gradients(chunked / 3, student, head), gradients(whole / 3, student, head))
    chunked_loss(loss, student, lambda x: head(x), chunk).backward()  # a function is as good as a module
    assert all((p.grad is not None) is p.requires_grad for p in head.parameters())
    assert all(p.grad is None for p in theirs.parameters())


def test_one_network_is_teacher_and_student(states: tuple[Tensor, Tensor]) -> None:
    (student, teacher), head = states, nn.Linear(H, V)
    loss = divergence(teacher, head)
    expected = gradients(loss(head(student), slice(0, N)), student, head)
    torch.testing.assert_close(gradients(chunked_loss(loss, student, head, 3), student, head), expected)


def test_the_loss_may_have_parameters_and_use_the_states(states: tuple[Tensor, Tensor]) -> None:
    (student, _), head, scale = states, nn.Linear(H, V), nn.Parameter(torch.tensor(2.0))
    shifts = [nn.Parameter(torch.ones(V)) for _ in range(2)]  # autograd gives both one gradient

    def loss(logits: Tensor, rows: slice) -> Tensor:
        return (scale * logits + (shifts[0] + shifts[1])).square().sum() + student[rows].sum()

    values = loss(head(student), slice(0, N)), chunked_loss(loss, student, head, 4)
    torch.testing.assert_close(*values)
    leaves = [student, scale, *shifts, head.bias]
    torch.testing.assert_close(*(torch.autograd.grad(value, leaves) for value in values))


@pytest.mark.parametrize("chunk", [3, 512])
def test_autocast(chunk: int, states: tuple[Tensor, Tensor]) -> None:
    (student, teacher), head, theirs = states, nn.Linear(H, V), nn.Linear(H, V)
    loss = divergence(teacher, theirs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(student).dtype == torch.bfloat16
        whole, chunked = loss(head(student), slice(0, N)), chunked_loss(loss, student, head, chunk)
    assert chunked.dtype == torch.float32
    torch.testing.assert_close(chunked, whole)
    actual, expected = gradients(chunked, student, head), gradients(whole, student, head)
    assert all(gradient.dtype == torch.float32 for gradient in actual)
    torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


def test_bfloat16_network(states: tuple[Tensor, Tensor]) -> None:
    head = nn.Linear(H, V).bfloat16()
    student, teacher = (x.detach().bfloat16().requires_grad_() for x in states)
    loss = divergence(teacher.detach(), copy.deepcopy(head))
    value = chunked_loss(loss, student, head, 3)
    assert value.dtype == torch.float32
    assert [gradient.dtype for gradient in gradients(value, student, head)] == [torch.bfloat16] * 3


@pytest.mark.parametrize("name", HEADS)
def test_no_rows(name: str, states: tuple[Tensor, Tensor]) -> None:
    (student, teacher), head = states, HEADS[name]()
    value = chunked_loss(divergence(teacher[:0], nn.Linear(H, V)), student[:0], head, 3)
    assert value == 0  # every parameter has a gradient, so that no rank waits for another
    assert all((gradient == 0).all() for gradient in gradients(value, student, head))


def test_nothing_to_differentiate(states: tuple[Tensor, Tensor]) -> None:
    (student, teacher), head = states, nn.Linear(H, V)
    loss = divergence(teacher, nn.Linear(H, V))
    with torch.no_grad():
        value = chunked_loss(loss, student, head, 3)
    assert not value.requires_grad
    torch.testing.assert_close(value, loss(head(student), slice(0, N)))
    assert not chunked_loss(loss, student.detach(), HEADS["frozen"](), 3).requires_grad
    only_head = chunked_loss(loss, student.detach(), head, 3)
    torch.testing.assert_close(
        torch.autograd.grad(only_head, head.weight),
        torch.autograd.grad(loss(head(student), slice(0, N)), head.weight),
    )


def test_it_runs_inside_a_network(states: tuple[Tensor, Tensor]) -> None:
    """States that have a graph, a weight used twice (tied), a mean over all tokens, another divergence."""
    (start, teacher), head = states, nn.Linear(H, V, bias=False)
    body = nn.Linear(H, H)

    def total(chunk: int) -> list[Tensor]:
        hidden = body(start) + head.weight.mean(0)
        theirs = head(teacher).detach()

        def loss(logits: Tensor, rows: slice) -> Tensor:
            return generalized_jsd(logits, theirs[rows], reduction="sum") / N

        value = chunked_loss(loss, hidden, head, chunk) if chunk else loss(head(hidden), slice(0, N))
        return [value, *torch.autograd.grad(2 * value, [start, *body.parameters(), head.weight])]

    torch.testing.assert_close(total(3), total(0))


def test_no_logits_of_all_rows_and_no_recomputation(states: tuple[Tensor, Tensor]) -> None:
    (student, teacher), seen = states, []

    class Recorder(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        value = chunked_loss(divergence(teacher, nn.Linear(H, V)), student, Recorder(H, V), 4)
    value.backward()
    assert seen == [4, 4, 2]
    assert torch.Size([N, V]) not in kept and torch.Size([4, V]) in kept


def test_errors(states: tuple[Tensor, Tensor]) -> None:
    (student, teacher), head = states, nn.Linear(H, V)
    loss = divergence(teacher, head)
    with pytest.raises(ValueError, match=r"states must be \(N, H\), the rows that count, got \(2, 5, 4\)"):
        chunked_loss(loss, student.view(2, 5, H), head)
    with pytest.raises(ValueError, match=r"scalar sum over its rows, got shape \(3,\)"):
        chunked_loss(lambda logits, rows: logits.sum(1), student, head, 3)
