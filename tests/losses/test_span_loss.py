"""Relations inside spans."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_kd.losses import span_relation_loss

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
    ({"norm": "l1"}, 'norm must be "squared", "l2" or "mse", got \'l1\''),
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
