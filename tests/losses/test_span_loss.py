"""Relations inside spans."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_kd.losses import chunked_loss, span_relation_loss, span_relations_of_rows

TEACHER = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]).double()
STUDENT = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]]]).double()
PAIRS = torch.tensor([[0, 0], [0, 1]])


@pytest.mark.parametrize(
    ("norm", "values"), [("squared", (0.005, 0.0045)), ("l2", (0.070711, 0.067082)), ("mse", (0.005 / 3, 0.0015))]
)
def test_numbers(norm: Any, values: tuple[float, float]) -> None:
    mean = {"squared": 0.00475, "l2": 0.068896, "mse": 0.001583}[norm]
    assert abs(span_relation_loss(STUDENT, TEACHER, PAIRS, norm).item() - mean) < 1e-6
    for k in (0, 1):
        assert abs(span_relation_loss(STUDENT, TEACHER, PAIRS[k : k + 1], norm).item() - values[k]) < 1e-6


def test_gradient_of_the_logits() -> None:
    logits, teacher = STUDENT.log().requires_grad_(), TEACHER.clone().requires_grad_()
    value = span_relation_loss(logits.softmax(-1), teacher, PAIRS)
    expected = [[-0.00390, 0.00555, -0.00165], [0.00268, 0.00098, -0.00366], [-0.00123, 0.00687, -0.00564]]
    gradient, none = torch.autograd.grad(value, [logits, teacher], allow_unused=True)
    torch.testing.assert_close(gradient, torch.tensor([expected]).double(), rtol=0, atol=1e-5)
    assert none is None


def of_spans(spans: list[list[int]]) -> Tensor:
    pairs = [[0, k] for span in spans for k in span[:-1]]
    return span_relation_loss(STUDENT.requires_grad_(), TEACHER, torch.tensor(pairs, dtype=torch.long).view(-1, 2))


def test_spans() -> None:
    alone = of_spans([[0], [1], [2]])
    (gradient,) = torch.autograd.grad(alone, STUDENT)
    assert alone == 0 and (gradient == 0).all()
    assert abs(of_spans([[0, 1], [2]]).item() - 0.005) < 1e-6
    assert abs(of_spans([[0], [1, 2]]).item() - 0.0045) < 1e-6


@pytest.mark.parametrize("norm", ["squared", "l2", "mse"])
def test_equal_networks(norm: Any) -> None:
    student = TEACHER.clone().requires_grad_()
    value = span_relation_loss(student, TEACHER, PAIRS, norm)
    assert value <= 1e-6 and torch.autograd.grad(value, student)[0].isfinite().all()


ERRORS = [
    ({"pairs": torch.zeros(2, 3).long()}, r"pairs must be \(P, 2\), rows \(sample, k\), got \(2, 3\)"),
    ({"pairs": torch.tensor([[0, 2]])}, r"sample below 1 and k, k \+ 1 below 3, got \[\[0, 2\]\]"),
    ({"pairs": torch.tensor([[1, 0]])}, "sample below 1"),
    ({"pairs": torch.tensor([[0, -1]])}, "sample below 1"),
    ({"teacher_probs": TEACHER[..., :2]}, r"one shape, got \(1, 3, 3\) and \(1, 3, 2\)"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        span_relation_loss(**{"student_probs": STUDENT, "teacher_probs": TEACHER, "pairs": PAIRS} | arguments)


@pytest.mark.parametrize("norm", ["squared", "l2", "mse"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_rows_of_logits_in_chunks_are_the_loss_of_the_batch(norm: Any, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    states, other, weights = (
        torch.randn(*shape, generator=generator).double() for shape in ((2, 4, 5), (2, 4, 5), (7, 5))
    )
    states, weights = states.requires_grad_(), weights.requires_grad_()
    pairs = torch.tensor([[0, 0], [0, 1], [1, 2]])  # sample, k
    student, teacher = ((x @ weights.T / temperature).softmax(-1) for x in (states, other))
    mean = span_relation_loss(student, teacher, pairs, norm)
    rows = pairs[:, :1] * 4 + pairs[:, 1:] + torch.tensor([0, 1])
    gathered, theirs = (x.flatten(0, 1)[rows.flatten()] for x in (states, other))

    def loss(logits: Tensor, chunk: slice) -> Tensor:
        local = torch.arange(len(logits)).view(-1, 2)
        return span_relations_of_rows(logits, theirs[chunk] @ weights.detach().T, local, temperature, norm)

    for chunk in (2, 4, 256):
        total = chunked_loss(loss, gathered, lambda x: x @ weights.T, chunk)
        torch.testing.assert_close(total / 3, mean)
        ours, expected = (torch.autograd.grad(x, states, retain_graph=True)[0] for x in (total / 3, mean))
        torch.testing.assert_close(ours, expected)
    whole = span_relations_of_rows(states.flatten(0, 1) @ weights.T, other.flatten(0, 1) @ weights.T, rows, temperature)
    if norm == "squared":
        torch.testing.assert_close(whole / 3, mean)


def test_rows_without_pairs_and_what_is_refused() -> None:
    logits = torch.zeros(3, 4, requires_grad=True)
    value = span_relations_of_rows(logits, torch.zeros(3, 4), torch.zeros(0, 2, dtype=torch.int64))
    value.backward()
    assert value == 0 and logits.grad is not None and (logits.grad == 0).all()
    pairs = torch.tensor([[1, 3]])
    with pytest.raises(ValueError, match="pairs must be of rows below 3, got 1 to 3"):
        span_relations_of_rows(logits, logits, pairs)
    with pytest.raises(ValueError, match=r"pairs must be \(P, 2\), two rows each, got \(2,\)"):
        span_relations_of_rows(logits, logits, pairs[0])


def test_pairs_can_have_weights() -> None:
    student, teacher = torch.randn(2, 4, 6).unbind()
    pairs = torch.tensor([[0, 1], [2, 3]])
    first, second = (span_relations_of_rows(student, teacher, pairs[i : i + 1]) for i in (0, 1))
    found = span_relations_of_rows(student, teacher, pairs, weights=torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(found, 0.5 * first + 2 * second)
