"""Divergences of next-token distributions: numbers worked out by hand, and laws."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_kd import losses

P, Q = ([0.6, 0.3, 0.1], [0.5, 0.25, 0.25])
ALL: dict[str, Callable[..., Tensor]] = {
    "forward": losses.forward_kl,
    "reverse": losses.reverse_kl,
    "symmetric": losses.symmetric_kl,
    "jsd": losses.generalized_jsd,
    "skew_forward": losses.skew_forward_kl,
    "skew_reverse": losses.skew_reverse_kl,
    "total_variation": losses.total_variation,
    "adaptive": losses.adaptive_kl,
    "adaptive_dskd": lambda *a, **kw: losses.adaptive_kl(*a, **kw, variant="dskd"),
}
every = pytest.mark.parametrize("name", ALL)


def logits_of(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def random_pair(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, *shape, generator=generator, dtype=dtype)
    return student.requires_grad_(), teacher


def close(actual: Tensor, expected: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=tolerance)


NUMBERS = [
    (losses.forward_kl, {}, 0.072460, [-0.1, -0.05, 0.15]),
    (losses.reverse_kl, {}, 0.092332, [-0.137327, -0.068663, 0.205990]),
    (losses.total_variation, {}, 0.15, [-0.125, -0.0625, 0.1875]),
    (losses.symmetric_kl, {}, 0.082396, None),
    (losses.generalized_jsd, {"beta": 0.1}, 0.006638, None),
    (losses.generalized_jsd, {"beta": 0.5}, 0.020017, [-0.028249, -0.014125, 0.042374]),
    (losses.generalized_jsd, {"beta": 0.9}, 0.008035, None),
    (losses.skew_forward_kl, {}, 0.060826, [-0.084481, -0.042240, 0.126721]),
    (losses.skew_reverse_kl, {}, 0.069996, [-0.101175, -0.050587, 0.151762]),
]


@pytest.mark.parametrize(("loss", "arguments", "value", "gradient"), NUMBERS)
def test_numbers(
    loss: Callable[..., Tensor], arguments: dict[str, float], value: float, gradient: list[float] | None
) -> None:
    student = logits_of(Q).requires_grad_()
    result = loss(student, logits_of(P), **arguments)
    close(result, value)
    (actual,) = torch.autograd.grad(result, student)
    close(actual.sum(), 0.0, 1e-15)
    if gradient is not None:
        close(actual, [gradient])


def test_forward_kl_is_neither_the_cross_entropy_nor_the_other_direction() -> None:
    student, teacher = logits_of(Q), logits_of(P)
    entropy = -(teacher.exp() * teacher).sum()
    close(entropy, 0.897946)
    close(losses.forward_kl(student, teacher) + entropy, 0.970406)
    close(losses.skew_forward_kl(student, teacher) + entropy, 0.958771)
    close(losses.reverse_kl(teacher, student), 0.072460)
    close(losses.forward_kl(logits_of([0.75, 0.25]), logits_of([0.5, 0.5])), 0.143841)


def test_adaptive_kl() -> None:
    student, teacher = logits_of([0.25] * 4), logits_of([0.35, 0.30, 0.20, 0.15])
    close(losses.adaptive_kl(student, teacher), 0.052932)
    close(losses.adaptive_kl(student, teacher, variant="dskd"), 0.052502)
    close(losses.forward_kl(student, teacher), 0.051209)
    close(losses.reverse_kl(student, teacher), 0.053794)
    close(losses.adaptive_kl(student, teacher, mu=1.0), 0.051209)  # all is head
    close(losses.adaptive_kl(student, teacher, mu=1.0, variant="dskd"), 0.053794)  # all is tail


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 0.119630), (2.0, 0.030991), (4.0, 0.007489)])
def test_temperature_and_no_square_of_it(temperature: float, value: float) -> None:
    student, teacher = torch.tensor([[1.0, 1.0, 0.0]]).double(), torch.tensor([[2.0, 1.0, 0.0]]).double()
    close(losses.forward_kl(student, teacher, temperature=temperature), value)


def test_gradients_of_any_temperature_are_of_one_size_after_its_square() -> None:
    student, teacher = (logits / 200 for logits in random_pair(4, 50))  # standard deviation 0.01
    norms = []
    for t in (1.0, 2.0, 4.0, 8.0):
        leaf = student.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(t**2 * losses.forward_kl(leaf, teacher, temperature=t), leaf)
        norms.append(gradient.norm().item())
    assert max(norms) / min(norms) < 1.005


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_forward_kl_is_a_double_loop(temperature: float) -> None:
    student, teacher = random_pair(2, 5, 7)
    total = 0.0
    for b in range(2):
        for s in range(5):
            q = [math.exp(z / temperature) for z in student[b, s].tolist()]
            p = [math.exp(z / temperature) for z in teacher[b, s].tolist()]
            pairs = zip(p, q, strict=True)
            total += sum(x / sum(p) * (math.log(x / sum(p)) - math.log(y / sum(q))) for x, y in pairs)
    close(losses.forward_kl(student, teacher, temperature=temperature), total / 10, 1e-12)


@every
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_is_that_of_the_value(name: str, temperature: float) -> None:
    student, teacher = random_pair(3, 6)
    if name.startswith("adaptive"):  # its weights are constants
        weights = []
        for loss in (losses.forward_kl, losses.reverse_kl):
            weights.append(loss(student, teacher, temperature=temperature, reduction="none"))
        value = ALL[name](student, teacher, temperature=temperature, reduction="none")
        forward, reverse = (weight.detach() for weight in weights)
        share = ((value - reverse) / (forward - reverse)).detach()
        expected = torch.autograd.grad((share * weights[0] + (1 - share) * weights[1]).sum(), student)[0]
        torch.testing.assert_close(torch.autograd.grad(value.sum(), student)[0], expected)
    else:
        assert torch.autograd.gradcheck(lambda z: ALL[name](z, teacher, temperature=temperature), (student,))


@every
def test_equal_networks(name: str) -> None:
    student, teacher = random_pair(4, 9)
    student = (teacher + torch.arange(4.0)[:, None]).requires_grad_()  # a constant in each position changes nothing
    value = ALL[name](student, teacher)
    close(value, 0.0, 1e-7)
    if name != "total_variation":
        close(torch.autograd.grad(value, student)[0], torch.zeros(4, 9), 1e-7)
    if name != "jsd" and not name.startswith("skew"):
        assert ALL[name](teacher, teacher) == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_not_negative(seed: int) -> None:
    student, teacher = random_pair(3, 8, seed=seed)
    for loss in ALL.values():
        assert loss(student, teacher) > -1e-12


def test_total_variation_is_at_most_one() -> None:
    close(losses.total_variation(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 99.0]])), 1.0)


def test_jsd_and_its_ends() -> None:
    student, teacher = random_pair(5, 7)
    jsd = losses.generalized_jsd
    close(jsd(student, teacher), jsd(teacher, student), 1e-12)
    close(jsd(student, teacher, beta=0.3), jsd(teacher, student, beta=0.7), 1e-12)
    forward, reverse = losses.forward_kl(student, teacher), losses.reverse_kl(student, teacher)
    assert jsd(student, teacher, beta=0) == forward and jsd(student, teacher, beta=1.0) == reverse > 0.1
    torch.testing.assert_close(jsd(student, teacher, beta=1e-7) / 1e-7, forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(jsd(student, teacher, beta=1 - 1e-7) / 1e-7, reverse, rtol=1e-4, atol=0)
    p, q = teacher.softmax(1), student.detach().softmax(1)
    m = 0.3 * p + 0.7 * q  # a mixture of probabilities, not of their logarithms
    expected = 0.3 * (p * (p / m).log()).sum(1) + 0.7 * (q * (q / m).log()).sum(1)
    close(jsd(student, teacher, beta=0.3), expected.mean(), 1e-12)


def test_skew_of_zero_is_plain() -> None:
    student, teacher = random_pair(5, 7)
    for skew, plain in ((losses.skew_forward_kl, losses.forward_kl), (losses.skew_reverse_kl, losses.reverse_kl)):
        values = skew(student, teacher, alpha=0.0), plain(student, teacher)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in values))


MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()


def with_terms(terms: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Logits whose forward KL is `terms`: the teacher is sure of token 0, the student gives it exp(-term)."""
    log_p = -torch.tensor(terms, dtype=torch.float64)
    student = torch.stack([log_p, (-log_p.exp()).log1p()], -1)
    return student.requires_grad_(), torch.tensor([0.0, -math.inf]).double().expand_as(student)


def test_reductions() -> None:
    student, teacher = with_terms([[1, 2, 3, 9], [9, 4, 9, 9], [9, 9, 9, 9]])
    values = {name: losses.forward_kl(student, teacher, MASK, reduction=name) for name in ("token", "sequence", "sum")}
    close(values["token"], 2.5)
    close(values["sequence"], 3.0)  # the sequence without tokens does not count
    close(values["sum"], 10.0)
    none = losses.forward_kl(student, teacher, MASK, reduction="none")
    close(none, [[1, 2, 3, 0], [0, 4, 0, 0], [0, 0, 0, 0]])
    close(losses.forward_kl(student, teacher, MASK.long()), 2.5)
    rows = student.detach()[MASK]
    close(losses.forward_kl(rows, teacher[MASK]), 2.5)
    parts = [losses.forward_kl(student[i], teacher[i], MASK[i], reduction="sum") for i in range(3)]
    close(sum(parts) / MASK.sum(), 2.5)  # any split of the batch, given the number of tokens of all of it
    close(sum(losses.forward_kl(student[i], teacher[i], MASK[i]) for i in range(2)) / 2, 3.0)  # ... else not


@every
@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
@pytest.mark.parametrize("noise", [math.nan, math.inf, 1e3])
def test_masked_logits_change_nothing(name: str, reduction: str, noise: float) -> None:
    student, teacher = random_pair(3, 4, 6)
    clean = ALL[name](student, teacher, MASK, reduction=reduction)
    (expected,) = torch.autograd.grad(clean, student)
    noisy, other = (torch.where(MASK[..., None], x, noise * (1 + x)).detach() for x in (student, teacher))
    value = ALL[name](noisy.requires_grad_(), other, MASK, reduction=reduction)
    assert torch.equal(value, clean)
    (gradient,) = torch.autograd.grad(value, noisy)
    assert torch.equal(gradient, expected) and (gradient[~MASK] == 0).all() and (gradient[MASK] != 0).any()
    assert not torch.allclose(clean, ALL[name](student, teacher.roll(1, 1), MASK, reduction=reduction))


@every
@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
def test_nothing_counted(name: str, reduction: str) -> None:
    student, teacher = random_pair(3, 4, 6)
    value = ALL[name](student, teacher * math.nan, MASK & False, reduction=reduction)
    (gradient,) = torch.autograd.grad(value, student)
    assert value == 0 and (gradient == 0).all()
    if reduction != "sequence":
        rows = student[0, :0]
        assert ALL[name](rows, rows, reduction=reduction) == 0


@every
def test_teacher_gets_no_gradient(name: str) -> None:
    student, teacher = random_pair(3, 6)
    value = ALL[name](student, teacher.requires_grad_())
    assert torch.autograd.grad(value, [student, teacher], allow_unused=True)[1] is None
    with torch.no_grad():
        assert not ALL[name](student, teacher).requires_grad


@every
def test_a_token_forbidden_in_both_is_absent(name: str) -> None:
    student, teacher = random_pair(3, 6)
    value = ALL[name](student, teacher)
    (expected,) = torch.autograd.grad(value, student)
    longer, other = (torch.nn.functional.pad(x.detach(), (1, 0), value=-math.inf) for x in (student, teacher))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        padded = ALL[name](longer.requires_grad_(), other)
    (gradient,) = torch.autograd.grad(padded, longer)
    close(padded, value.detach(), 1e-12)
    close(gradient[:, 1:], expected, 1e-12)
    assert (gradient[:, 0] == 0).all()
    zeros = [torch.nn.functional.pad(x.detach(), (1, 0)) for x in (student, teacher)]
    assert not torch.allclose(ALL[name](*zeros), value)  # padding by zeros gives it probability


@pytest.mark.parametrize(
    ("name", "forbids"), [("forward", "student"), ("reverse", "teacher"), ("symmetric", "student")]
)
def test_a_token_forbidden_in_one_is_an_infinity_cut_off(name: str, forbids: str) -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2]]).double()
    barred = probabilities.log().index_fill(1, torch.tensor([2]), -math.inf)
    student, teacher = (barred, probabilities.log()) if forbids == "student" else (probabilities.log(), barred)
    with pytest.warns(UserWarning, match=r"the divergence is infinite, log 0 counts as -10000. Forbid \(-inf\)"):
        value = ALL[name](student.requires_grad_(), teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert 900 < value < 2100 and gradient.isfinite().all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["jsd", "skew_forward", "skew_reverse", "total_variation"])
def test_bounded_divergences_take_a_token_forbidden_in_one(name: str) -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2]])
    barred = probabilities.log().index_fill(1, torch.tensor([2]), -math.inf)
    for student, teacher in ((barred, probabilities.log()), (probabilities.log(), barred)):
        leaf = student.clone().requires_grad_()
        value = ALL[name](leaf, teacher)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert 0.01 < value < 2.4 and gradient.isfinite().all()


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_at_a_low_temperature(name: str, dtype: torch.dtype) -> None:
    student, teacher = torch.tensor([[60.0, -60, 0, 5], [-60, 60, 0, 5]], dtype=dtype)[:, None]
    value = ALL[name](student.requires_grad_(), teacher, temperature=0.05)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite() and gradient.isfinite().all()
    if name in ("forward", "reverse", "symmetric"):
        close(value, 2400.0, 1e-3)  # nothing is cut off


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = (x.detach().to(dtype) for x in random_pair(4, 500))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ALL[name](student.requires_grad_(), teacher, temperature=2.0)
    assert value.dtype == torch.float32 and value > -1e-6
    wide = student.detach().float().requires_grad_()
    expected = ALL[name](wide, teacher.float(), temperature=2.0)
    close(value, expected.detach())
    (gradient,), (reference,) = torch.autograd.grad(value, student), torch.autograd.grad(expected, wide)
    assert torch.equal(gradient, reference.to(dtype))
    close(ALL[name](teacher, teacher), 0.0)
    torch.testing.assert_close(ALL[name](student, teacher.float(), temperature=2.0), value)


def test_small_divergence_over_a_large_vocabulary_in_bfloat16() -> None:
    teacher, student = torch.zeros(2, 1, 50257, dtype=torch.bfloat16)
    teacher[0, 0], student[0, 0] = 12, 11.875  # 11.9 is no bfloat16
    exact = losses.forward_kl(student.double(), teacher.double()).item()
    assert abs(losses.forward_kl(student, teacher).item() / exact - 1) < 0.01
    wide = torch.zeros(1, 50257)
    wide[0, 0] = 11.9
    close(losses.forward_kl(wide.double(), teacher.double()), 0.000917)
    assert abs(losses.forward_kl(wide, teacher).item() / 0.000917 - 1) < 0.01
    log_p, log_q = (x.float().log_softmax(1).bfloat16() for x in (teacher, wide))
    assert (log_p.exp() * (log_p - log_q)).float().sum() > 0.002  # what is wrong with log-probabilities in bfloat16


def test_vocabularies_that_differ_in_padding() -> None:
    student, teacher = random_pair(3, 10)
    longer = torch.cat([teacher, torch.full((3, 2), -math.inf)], 1)
    with pytest.raises(ValueError, match=r"over 10 tokens and teacher_logits over 12.*cut both to the common 10"):
        losses.forward_kl(student, longer)
    value = losses.forward_kl(student, longer[:, :10])
    filled = torch.cat([student, torch.full((3, 2), -math.inf)], 1)
    close(losses.forward_kl(filled, longer), value.detach(), 1e-12)
    zeros = torch.cat([student, torch.zeros(3, 2)], 1)
    assert not torch.allclose(losses.forward_kl(zeros, longer), value)


ERRORS: list[tuple[Callable[..., Tensor], dict[str, Any], str]] = [
    *((loss, {"temperature": math.nan}, "temperature=nan must be a positive number") for loss in ALL.values()),
    (losses.forward_kl, {"mask": torch.ones(2, 4)}, r"one value a token, \(2, 3\) for.*got \(2, 4\)"),
    (losses.forward_kl, {"mask": torch.ones(2, 3, 5)}, r"one value a token.*got \(2, 3, 5\)"),
    (losses.forward_kl, {"teacher_logits": torch.ones(2, 4, 5)}, r"same positions.*\(2, 3, 5\) and \(2, 4, 5\)"),
]


@pytest.mark.parametrize(("loss", "arguments", "message"), ERRORS)
def test_errors(loss: Callable[..., Tensor], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(**{"student_logits": torch.ones(2, 3, 5), "teacher_logits": torch.ones(2, 3, 5)} | arguments)


def test_sequence_needs_sequences() -> None:
    with pytest.raises(ValueError, match=r'reduction="sequence" needs logits \(B, S, V\), got \(2, 5\)'):
        losses.forward_kl(torch.ones(2, 5), torch.ones(2, 5), reduction="sequence")
