"""Laws that every loss keeps, whatever the numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_kd import losses

B, C = 5, 4
LABELS = torch.tensor([0, 3, 1, 2, 0])
SHAPES = {"logits": (B, C), "embedding": (B, 6), "maps": (B, 3, 4, 4)}

# name: (loss of student and teacher, what these are)
LOSSES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "kd": (losses.kd_loss, "logits"),
    "dkd": (lambda s, t, **kw: losses.dkd_loss(s, t, LABELS, **kw), "logits"),
    "dist": (losses.dist_loss, "logits"),
    "logit_standardization": (losses.logit_standardization_kd_loss, "logits"),
    "hint": (losses.hint_loss, "maps"),
    "attention_transfer": (lambda s, t, **kw: losses.attention_transfer_loss([s], [t], **kw), "maps"),
    "similarity_preserving": (lambda s, t: losses.similarity_preserving_loss([s], [t]), "maps"),
    "nst": (lambda s, t, **kw: losses.nst_loss([s], [t], **kw), "maps"),
    "hierarchical_context": (lambda s, t, **kw: losses.hierarchical_context_loss([s], [t], **kw), "maps"),
    "pkt": (losses.pkt_loss, "embedding"),
    "rkd": (losses.rkd_loss, "embedding"),
    "correlation_congruence": (losses.correlation_congruence_loss, "embedding"),
    "vid": (lambda s, t, **kw: losses.vid_loss(s, torch.tensor([0.5, 0.0, 4.0]), t, **kw), "maps"),
}
PER_SAMPLE = [
    "kd",
    "dkd",
    "logit_standardization",
    "hint",
    "attention_transfer",
    "nst",
    "hierarchical_context",
    "vid",
]
ZERO_AT_EQUALITY = sorted(set(LOSSES) - {"vid"})
INVARIANT_TO_ORDER = sorted(set(LOSSES) - {"correlation_congruence", "dkd"})  # dkd: its labels stay here

seeds = st.integers(0, 10**6)


def pair(kind: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, *SHAPES[kind], generator=generator, dtype=dtype)
    return student, teacher


@pytest.mark.parametrize("name", ZERO_AT_EQUALITY)
@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_not_negative_and_zero_at_equality(name: str, seed: int) -> None:
    loss, kind = LOSSES[name]
    student, teacher = pair(kind, seed)
    assert loss(student, teacher) > -1e-12
    torch.testing.assert_close(loss(teacher, teacher), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", INVARIANT_TO_ORDER)
@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_independent_of_the_order_of_the_batch(name: str, seed: int) -> None:
    loss, kind = LOSSES[name]
    student, teacher = pair(kind, seed)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_mean_of_the_terms_of_the_samples(name: str) -> None:
    loss, kind = LOSSES[name]
    student, teacher = pair(kind)
    per_sample = loss(student, teacher, reduction="none")
    assert per_sample.shape == (B,)
    torch.testing.assert_close(per_sample.mean(), loss(student, teacher))
    with pytest.raises(ValueError, match="reduction='sum' must be 'mean' or 'none'"):
        loss(student, teacher, reduction="sum")


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name: str) -> None:
    loss, kind = LOSSES[name]
    student, teacher = pair(kind)
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), teacher))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    loss, kind = LOSSES[name]
    student, teacher = (tensor.to(dtype) for tensor in pair(kind))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student.requires_grad_(), teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(student.float(), teacher.float()))
    value.backward()
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("student_is", ["zero", "constant", "the teacher"])
def test_degenerate_features_have_finite_gradients(name: str, student_is: str) -> None:
    loss, kind = LOSSES[name]
    teacher = pair(kind, dtype=torch.float32)[1]
    student = {"zero": teacher * 0, "constant": teacher * 0 + 3, "the teacher": teacher.clone()}[student_is]
    value = loss(student.requires_grad_(), teacher)
    value.backward()
    assert value.isfinite() and student.grad is not None and student.grad.isfinite().all()


def test_rkd_gradient_is_bounded_where_two_samples_coincide() -> None:
    student, teacher = pair("embedding")
    student[1] = student[0]
    (gradient,) = torch.autograd.grad(losses.rkd_loss(student.requires_grad_(), teacher), student)
    assert gradient.abs().max() < 10


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"dkd"}))
def test_batch_of_one(name: str) -> None:
    loss, kind = LOSSES[name]
    student, teacher = (tensor[:1] for tensor in pair(kind))
    value = loss(student.requires_grad_(), teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite() and gradient.isfinite().all()


@settings(deadline=None)
@given(seeds, st.floats(-5, 5), st.floats(0.1, 10))
def test_invariances(seed: int, shift: float, scale: float) -> None:
    student, teacher = pair("logits", seed)
    for name in ("kd", "dkd", "dist", "logit_standardization"):
        loss = LOSSES[name][0]
        torch.testing.assert_close(loss(student + shift, teacher - shift), loss(student, teacher))
    standardised = losses.logit_standardization_kd_loss
    torch.testing.assert_close(
        standardised(student * scale, teacher), standardised(student, teacher), rtol=1e-5, atol=0
    )
    student, teacher = pair("embedding", seed)
    torch.testing.assert_close(losses.rkd_loss(student * scale + shift, teacher), losses.rkd_loss(student, teacher))
    maps, other = pair("maps", seed)
    for name in ("attention_transfer", "similarity_preserving", "nst"):
        loss = LOSSES[name][0]
        torch.testing.assert_close(loss(maps * scale, other), loss(maps, other))


def test_kl_direction() -> None:
    student, teacher = pair("logits")
    right = 16 * F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean")
    wrong = 16 * F.kl_div((teacher / 4).log_softmax(1), (student / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(losses.kd_loss(student, teacher), right)
    assert not torch.allclose(losses.kd_loss(student, teacher), wrong, rtol=1e-2)


def test_kd_gradient_does_not_shrink_with_the_classes() -> None:
    teacher = torch.cat([torch.zeros(1, 2), torch.full((1, 98), -1e4)], dim=1)
    student = torch.cat([torch.tensor([[1.0, 0.0]]), torch.full((1, 98), -1e4)], dim=1)
    torch.testing.assert_close(losses.kd_loss(student, teacher), losses.kd_loss(student[:, :2], teacher[:, :2]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=8, max_size=8), st.integers(0, 3))
def test_dkd_is_finite_for_any_logits(values: list[float], label: int) -> None:
    student, teacher = torch.tensor(values).view(2, 1, 4)
    loss = losses.dkd_loss(student.requires_grad_(), teacher, torch.tensor([label]))
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.isfinite() and gradient.isfinite().all()


ERRORS: list[tuple[Callable[..., Tensor], tuple[Any, ...], str]] = [
    (losses.kd_loss, (torch.ones(4, 9), torch.ones(4, 1000)), r"\(4, 9\) and \(4, 1000\)"),
    (losses.dkd_loss, (torch.ones(4, 2), torch.ones(4, 2), LABELS[:4]), "at least 3 classes, got 2"),
    (losses.dist_loss, (torch.ones(4, 9), torch.ones(4, 8)), r"\(4, 9\) and \(4, 8\)"),
    (losses.hint_loss, (torch.ones(4, 3), torch.ones(4, 2)), r"one shape, got \(4, 3\) and \(4, 2\)"),
    (losses.nst_loss, ([], []), "lists of as many maps, got 0 and 0"),
    (losses.nst_loss, ([torch.ones(2, 3, 4, 4)], []), "lists of as many maps, got 1 and 0"),
    (losses.nst_loss, (torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4)), "put a single tensor in a list"),
    (losses.attention_transfer_loss, ([torch.ones(2, 3, 4, 4)], [torch.ones(3, 3, 4, 4)]), "got 2 and 3"),
    (losses.hierarchical_context_loss, ([torch.ones(2, 3, 4, 4)], [torch.ones(2, 3, 2, 2)]), "one shape"),
    (losses.pkt_loss, (torch.ones(4, 3), torch.ones(5, 3)), "got 4 and 5"),
    (losses.rkd_loss, (torch.ones(4, 3), torch.ones(5, 3)), "got 4 and 5"),
    (losses.correlation_congruence_loss, (torch.ones(4, 3), torch.ones(4, 2)), "one shape"),
    (
        losses.vid_loss,
        (torch.ones(2, 3, 4, 4), torch.ones(2), torch.ones(2, 3, 4, 4)),
        r"must be \(3,\).*got \(2,\)",
    ),
]


@pytest.mark.parametrize(("loss", "arguments", "message"), ERRORS)
def test_errors(loss: Callable[..., Tensor], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(*arguments)
