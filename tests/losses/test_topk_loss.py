"""The forward KL of the teacher's top k, and what becomes of the rest."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_kd.losses import forward_kl, topk_kl

TAILS = ["bucket", "renormalize_both", "renormalize_teacher", "none"]


def random(k: int = 4, temperature: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, 2, 3, 12, generator=generator, dtype=torch.float64)
    log_p, indices = (teacher / temperature).log_softmax(-1).topk(k)
    return student.requires_grad_(), teacher, indices, log_p


@pytest.mark.parametrize(
    ("tail", "value"),
    [("renormalize_both", 0.0), ("renormalize_teacher", 0.287682), ("none", 0.164089), ("bucket", 0.072460)],
)
def test_numbers(tail: Any, value: float) -> None:
    student, teacher = (torch.tensor([x]).double().log() for x in ([0.5, 0.25, 0.25], [0.6, 0.3, 0.1]))
    result = topk_kl(student, torch.tensor([[0, 1]]), teacher[:, :2], tail=tail)
    assert abs(result.item() - value) < 1e-6


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bucket_is_a_lower_bound_that_grows_to_the_full_kl(temperature: float) -> None:
    student, teacher, _, _ = random()
    full = forward_kl(student, teacher, temperature=temperature, reduction="none")
    before = torch.zeros_like(full)
    for k in range(1, 13):
        log_p, indices = (teacher / temperature).log_softmax(-1).topk(k)
        bucket = topk_kl(student, indices, log_p, temperature=temperature, reduction="none")
        assert (bucket >= before - 1e-12).all() and (bucket <= full + 1e-12).all()
        before = bucket
    torch.testing.assert_close(before, full)


def test_equal_networks() -> None:
    _, teacher, indices, log_p = random()
    log_mass = log_p.logsumexp(-1)
    expected = {"bucket": 0 * log_mass, "none": 0 * log_mass, "renormalize_both": 0 * log_mass}
    expected["renormalize_teacher"] = -log_mass
    for tail, value in expected.items():
        torch.testing.assert_close(topk_kl(teacher, indices, log_p, tail, reduction="none"), value)  # type: ignore


def test_the_bare_sum_can_be_negative_and_renormalising_both_is_blind_to_the_tail() -> None:
    teacher, student = (torch.tensor([x]).double().log() for x in ([0.5, 0.5], [0.9, 0.1]))
    assert topk_kl(student, torch.tensor([[0]]), teacher[:, :1], "none") < 0
    for tail, sees in (("bucket", True), ("renormalize_both", False)):
        student, _, indices, log_p = random()
        raised = student.scatter_add(-1, indices, torch.full_like(log_p, -5.0))
        same = torch.allclose(topk_kl(raised, indices, log_p, tail), topk_kl(student, indices, log_p, tail))  # type: ignore
        assert same is not sees


@pytest.mark.parametrize("tail", TAILS)
def test_gradient(tail: Any) -> None:
    student, _, indices, log_p = random(temperature=2.0)
    assert torch.autograd.gradcheck(lambda z: topk_kl(z, indices, log_p, tail, temperature=2.0), (student,))


@pytest.mark.parametrize("tail", TAILS)
def test_masked_values_change_nothing(tail: Any) -> None:
    student, _, indices, log_p = random()
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]]).bool()
    clean = topk_kl(student, indices, log_p, tail, mask)
    (expected,) = torch.autograd.grad(clean, student)
    noisy = student.detach().masked_fill(~mask[..., None], math.nan).requires_grad_()
    indices, log_p = indices.masked_fill(~mask[..., None], -1), log_p.masked_fill(~mask[..., None], math.nan)
    value = topk_kl(noisy, indices.int(), log_p, tail, mask)
    (gradient,) = torch.autograd.grad(value, noisy)
    assert torch.equal(value, clean) and torch.equal(gradient, expected) and (gradient[~mask] == 0).all()
    empty = topk_kl(noisy, indices, log_p, tail, mask & False)
    (gradient,) = torch.autograd.grad(empty, noisy)
    assert empty == 0 and (gradient == 0).all()


def test_a_light_tail_of_the_student_is_not_rounded_away() -> None:
    teacher = torch.tensor([[0.7, 0.2, 0.1]]).log()
    student = torch.tensor([[20.0, 19.0, 0.0]], requires_grad=True)  # 1 - q_0 - q_1 is 1.5e-9, 0 in float32
    indices = torch.tensor([[0, 1]])
    value = topk_kl(student, indices, teacher[:, :2])
    torch.testing.assert_close(value, forward_kl(student, teacher))
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradient, student.softmax(1) - teacher.exp())


def test_storage_in_float16_and_bfloat16_logits() -> None:
    student, _, indices, log_p = random(k=12)
    value = topk_kl(student, indices, log_p)
    assert abs(topk_kl(student, indices, log_p.half()) - value) < 1e-3
    low = student.detach().bfloat16().requires_grad_()
    result = topk_kl(low, indices, log_p.float())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, topk_kl(low.float(), indices, log_p.float()))
    assert torch.autograd.grad(result, low)[0].dtype == torch.bfloat16


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tail", TAILS)
def test_forbidden_tokens(tail: Any) -> None:
    student, teacher, _, _ = random()
    barred = [0, 5]  # in both networks, and in the top k where that is larger than what is allowed
    for k in (4, 11):
        z_t = teacher.index_fill(-1, torch.tensor(barred), -math.inf)
        z_s = student.detach().index_fill(-1, torch.tensor(barred), -math.inf).requires_grad_()
        log_p, indices = z_t.log_softmax(-1).topk(k)
        value = topk_kl(z_s, indices, log_p, tail)
        (gradient,) = torch.autograd.grad(value, z_s)
        assert value.isfinite() and gradient.isfinite().all() and (gradient[..., barred] == 0).all()
        if k == 11:
            torch.testing.assert_close(value, forward_kl(z_s, z_t))


def test_a_top_k_that_the_student_forbids() -> None:
    student = torch.tensor([[-math.inf, 0.0, 0.0]], requires_grad=True)
    with pytest.warns(UserWarning, match="the divergence is infinite"):
        value = topk_kl(student, torch.tensor([[0]]), torch.tensor([[0.5]]).log())
    assert value.isfinite() and torch.autograd.grad(value, student)[0].isfinite().all()


ERRORS = [
    ({"teacher_indices": torch.full((2, 3, 4), 12)}, "go from 12 to 12, but the student has 12 tokens"),
    ({"teacher_indices": torch.full((2, 3, 4), -1)}, "go from -1 to -1, but the student has 12 tokens"),
    ({"teacher_logprobs": torch.zeros(2, 3, 5)}, r"got \(2, 3, 4\) and \(2, 3, 5\)"),
    ({"student_logits": torch.zeros(2, 4, 12)}, r"must be \(..., k\) for student_logits \(2, 4, 12\)"),
    ({"mask": torch.ones(3, 2)}, "mask must have one value a token"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    student, _, indices, log_p = random()
    usual = {"student_logits": student, "teacher_indices": indices, "teacher_logprobs": log_p}
    with pytest.raises(ValueError, match=message):
        topk_kl(**usual | arguments)
