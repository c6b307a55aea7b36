"""Distribution adaptive clipping: numbers worked out by hand, a literal transcription, and guards against collapse."""

import copy
import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_kd.losses import DACKL, Clip, chunked_loss, dac_kl, forward_kl, interpolated_quantiles

P = torch.tensor([[0.55, 0.20, 0.10, 0.08, 0.05, 0.02]], dtype=torch.float64)
Q = torch.tensor([[0.30, 0.25, 0.20, 0.10, 0.10, 0.05]], dtype=torch.float64)
MASKS, NORMS = ["soft", "hard", "straight_through"], ["renorm", "rest", "none"]


def levels(*values: float, n: int = 1) -> tuple[Tensor, Tensor]:
    lower, upper = (torch.full((n,), value, dtype=torch.float64, requires_grad=True) for value in values)
    return lower, upper


def random_pair(n: int = 4, v: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(2, n, v, generator=generator, dtype=torch.float64)).to(dtype)
    return student.requires_grad_(), teacher


def close(actual: Tensor, expected: Any, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual.detach(), expected.expand_as(actual), rtol=0, atol=tolerance)


def literal(student: Tensor, teacher: Tensor, lower: Tensor, upper: Tensor, **settings: Any) -> tuple[Tensor, ...]:
    """The reconstruction's text, token by token: loss, kept classes, kept mass."""
    mask, norm = settings.get("mask", "soft"), settings.get("norm", "rest")
    tau, min_keep = settings.get("sharpness", 10.0), settings.get("min_keep", 2)
    rows = []
    for z_s, z_t, below, above in zip(student, teacher, lower, upper, strict=True):
        p, q = z_t.softmax(0), z_s.softmax(0)
        s = p.sort().values
        low, high = (torch.stack(list(at(s, t))) @ torch.ones(2, dtype=p.dtype) for t in (below, above))
        span = high - low + 1e-12
        soft = torch.sigmoid(tau * (p - low) / span) * torch.sigmoid(tau * (high - p) / span)
        hard = ((p >= low) & (p <= high)).to(p.dtype)
        m = soft if mask == "soft" else hard
        always = torch.zeros_like(p, dtype=torch.bool).index_fill(0, p.topk(min(min_keep, len(p))).indices, True)
        m = torch.where(always, 1.0, m)
        of_student = m.detach() if settings.get("detach_mask_in_student") else m
        a, b = (m * p)[m > 0], (of_student * q)[m > 0]
        mass = a.sum()
        if norm == "renorm":
            a, b = a / a.sum(), b / b.sum()
        if norm == "rest":
            a, b = torch.cat([a, 1 - a.sum().view(1)]), torch.cat([b, 1 - b.sum().view(1)])
        rows.append(((a * (a / b).log()).sum(), m.sum(), mass))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def at(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    place = t * (len(s) - 1)
    k = min(int(place), len(s) - 2)
    w = place - k
    return (1 - w) * s[k], w * s[k + 1]


def test_quantiles() -> None:
    found = interpolated_quantiles(P, torch.tensor([[0.2, 0.8, 0.5, 0.35, 0.0, 1.0]]).double())
    close(found, [[0.05, 0.20, 0.09, 0.0725, 0.02, 0.55]])


def test_quantiles_are_torchs_at_levels_of_each_row() -> None:
    _, values = random_pair(3, 50)
    t = torch.rand(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    expected = torch.stack([torch.quantile(row, at) for row, at in zip(values, t.detach(), strict=True)])
    close(interpolated_quantiles(values, t), expected, 1e-12)
    assert torch.autograd.gradcheck(lambda t: interpolated_quantiles(values, t), (t,))


@pytest.mark.parametrize(("norm", "value"), [("none", 0.166922), ("renorm", 0.139238), ("rest", 0.148597)])
@pytest.mark.parametrize("min_keep", [1, 2])
def test_numbers(norm: Any, value: float, min_keep: int) -> None:
    terms = dac_kl(Q.log(), P.log(), *levels(0.2, 0.8), clip=Clip(mask="hard", norm=norm, min_keep=min_keep))
    close(terms.loss, value)
    close(terms.kept_mass, 0.98)
    close(terms.kept_classes, 5)
    full = forward_kl(Q.log(), P.log())
    close(full, 0.148597)
    p, q = P[0, :5], Q[0, :5]
    generalised = terms.loss + q.sum() - p.sum() if norm == "none" else 0.136922
    close(torch.as_tensor(generalised), 0.136922)


def test_without_the_peak_the_sum_would_be_negative_and_only_without_a_norm() -> None:
    terms = dac_kl(Q.log(), P.log(), *levels(0.0, 0.8), clip=Clip(mask="hard", norm="none", min_keep=1))
    peak = 0.55 * math.log(0.55 / 0.30)
    close(terms.loss - peak, -0.184778)
    the_peak_alone = levels(0.5, 0.5)
    swapped = dac_kl(P.log(), Q.log(), *the_peak_alone, clip=Clip(mask="hard", norm="none", min_keep=1))
    assert swapped.loss < -0.1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.floats(0, 0.5), high=st.floats(0.5, 1), min_keep=st.integers(1, 5))
def test_a_norm_makes_it_a_divergence(seed: int, low: float, high: float, min_keep: int) -> None:
    student, teacher = random_pair(3, 9, seed)
    full = forward_kl(student, teacher, reduction="none")
    for mask, norm in itertools.product(MASKS, ["renorm", "rest"]):
        terms = dac_kl(student, teacher, *levels(low, high, n=3), clip=Clip(mask=mask, norm=norm, min_keep=min_keep))  # type: ignore
        assert (terms.loss > -1e-12).all() and (terms.kept_classes >= min_keep - 1e-9).all()
        assert (terms.kept_mass <= 1 + 1e-9).all()
        if norm == "rest":
            assert (terms.loss <= full + 1e-9).all()


def test_the_peak_alone_is_a_collapse_that_min_keep_stops() -> None:
    student = Q.log().requires_grad_()
    alone = dac_kl(student, P.log(), *levels(0.5, 0.5), clip=Clip(norm="renorm", mask="hard", min_keep=1))
    close(alone.loss, 0.0)
    close(alone.kept_classes, 1)
    assert torch.autograd.grad(alone.loss.sum(), student)[0].abs().max() < 1e-12
    two = dac_kl(student, P.log(), *levels(0.5, 0.5), clip=Clip(norm="renorm", mask="hard"))
    close(two.kept_classes, 2)
    assert two.loss > 0.01 and torch.autograd.grad(two.loss.sum(), student)[0].abs().max() > 0.01


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_full_range_is_the_forward_kl(norm: Any, temperature: float) -> None:
    student, teacher = random_pair(5, 40)
    terms = dac_kl(student, teacher, *levels(0.0, 1.0, n=5), temperature, clip=Clip(mask="hard", norm=norm))
    full = forward_kl(student, teacher, temperature=temperature, reduction="none")
    close(terms.loss, full.detach(), 1e-13)
    close(terms.kept_classes, 40)
    gradients = [torch.autograd.grad(value.sum(), student)[0] for value in (terms.loss, full)]
    close(gradients[0], gradients[1], 1e-13)


@pytest.mark.parametrize("mask", ["soft", "hard"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("min_keep", [1, 3])
def test_value_and_gradients_are_those_of_the_text(mask: Any, norm: Any, detach: bool, min_keep: int) -> None:
    student, teacher = random_pair(4, 12)
    lower, upper = levels(0.23, 0.77, n=4)
    chosen = {"mask": mask, "norm": norm, "detach_mask_in_student": detach, "min_keep": min_keep, "sharpness": 4.0}
    terms = dac_kl(student, teacher, lower, upper, clip=Clip(**chosen))
    values = literal(student, teacher, lower, upper, **chosen)
    for actual, expected in zip(terms, values, strict=False):
        close(actual, expected.detach(), 1e-9)
    weights = torch.arange(1.0, 5.0)
    inputs = (student, lower, upper)
    ours = torch.autograd.grad((weights * terms.loss).sum(), inputs)
    theirs = torch.autograd.grad((weights * values[0]).sum(), inputs, allow_unused=True)
    for actual, expected in zip(ours, theirs, strict=True):
        close(actual, torch.zeros_like(actual) if expected is None else expected, 1e-9)
    assert (ours[1] == 0).all() == (mask == "hard")


@pytest.mark.parametrize("norm", NORMS)
def test_straight_through(norm: Any) -> None:
    student, teacher = random_pair()
    lower, upper = levels(0.23, 0.77, n=4)
    terms = dac_kl(student, teacher, lower, upper, clip=Clip(mask="straight_through", norm=norm))
    hard = dac_kl(student, teacher, lower, upper, clip=Clip(mask="hard", norm=norm))
    close(terms.loss, hard.loss.detach(), 0)
    ours, theirs = (
        torch.autograd.grad(x.loss.sum(), (student, lower, upper), retain_graph=True) for x in (terms, hard)
    )
    close(ours[0], theirs[0], 0)
    assert (ours[1] != 0).all() and (ours[2] != 0).all() and (theirs[1] == 0).all()
    # The loss is linear in D, A, B of the mask around the hard one: a step of the soft mask is the derivative.
    p, q = teacher.softmax(1), student.detach().softmax(1)

    def moved(lower: Tensor) -> Tensor:
        low, high = interpolated_quantiles(p, torch.stack([lower, upper.detach()], 1)).split(1, 1)
        span = high - low + 1e-12
        soft = torch.sigmoid(10 * (p - low) / span) * torch.sigmoid(10 * (high - p) / span)
        still = ((p >= low) & (p <= high)).to(p.dtype)
        m = (still + soft - soft.detach()).masked_fill(p >= p.topk(2).values[:, -1:], 1)
        d, mass, mass_q = (m * p * (p / q).log()).sum(1), (m * p).sum(1), (m * q).sum(1)
        if norm == "renorm":
            return d / mass - mass.log() + mass_q.log()
        return d if norm == "none" else d + (1 - mass) * ((1 - mass) / (1 - mass_q)).log()

    leaf = lower.detach().requires_grad_()
    close(ours[1], torch.autograd.grad(moved(leaf).sum(), leaf)[0], 1e-9)


@pytest.mark.parametrize("features", ["topk", "full_probs", "student_teacher_probs", "stats"])
def test_finite_differences_of_the_sub_network(features: Any) -> None:
    torch.manual_seed(0)
    student, teacher = random_pair(3, 14)
    clip = Clip(coverage=0.99, coverage_weight=0.5)
    dac = DACKL(features, hidden=3, top_k=5, num_classes=14, start=(0.2, 0.8), clip=clip).double()
    nn.init.normal_(dac.subnet[2].weight, std=0.1)  # type: ignore[arg-type]
    weights = dict(dac.named_parameters())

    def loss(z: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(weights, values, strict=True))
        return torch.func.functional_call(dac, given, (z, teacher, 2.0)).loss

    assert torch.autograd.gradcheck(lambda *values: loss(student.detach(), *values), tuple(weights.values()))
    if features != "student_teacher_probs":  # what it reads is no path of the student's gradient
        fixed = [value.detach() for value in weights.values()]
        assert torch.autograd.gradcheck(lambda z: loss(z, *fixed), (student,))


def test_the_teacher_gets_no_gradient_and_the_student_none_through_the_features() -> None:
    student, teacher = random_pair(3, 14)
    teacher.requires_grad_()
    dac = DACKL("student_teacher_probs", num_classes=14).double()
    terms = dac(student, teacher)
    found = torch.autograd.grad(terms.loss.sum(), [teacher, student, *dac.parameters()], allow_unused=True)
    assert found[0] is None and all(gradient is not None for gradient in found[1:])
    assert not any(value.requires_grad for value in terms[1:])
    given = dac_kl(student, teacher, terms.lower, terms.upper)
    close(torch.autograd.grad(given.loss.sum(), student)[0], found[1], 1e-15)


@pytest.mark.parametrize("start", [(0.01, 0.99), (0.3, 0.6)])
def test_all_tokens_start_at_the_same_levels(start: tuple[float, float]) -> None:
    student, teacher = random_pair(5, 300, dtype=torch.float32)
    for limits in ((0.5, 0.5), (1.0, 0.0)):
        terms = DACKL(start=start, limits=limits)(student, teacher)
        close(terms.lower, start[0], 1e-6)
        close(terms.upper, start[1], 1e-6)


@settings(max_examples=30, deadline=None)
@given(a=st.floats(-30, 30), b=st.floats(-30, 30))
def test_levels_are_in_order_and_inside_the_limits(a: float, b: float) -> None:
    for limits in ((0.5, 0.5), (1.0, 0.0)):
        dac = DACKL(limits=limits).double()
        with torch.no_grad():
            dac.subnet[2].bias.copy_(torch.tensor([a, b], dtype=torch.float64))  # type: ignore[union-attr, operator]
        lower, upper = dac.levels(torch.zeros(1, 257, dtype=torch.float64))
        assert 0 <= lower <= upper <= 1 and lower <= limits[0] and upper >= limits[1]
        if limits == (1.0, 0.0):
            close(lower, 1 / (1 + math.exp(-a)), 1e-12)
            close(upper, lower.detach() + (1 - lower.detach()) / (1 + math.exp(-b)), 1e-12)


@pytest.mark.parametrize("norm", ["renorm", "rest", "none"])
@pytest.mark.parametrize("limits", [(0.5, 0.5), (1.0, 0.0)])
def test_the_sub_network_alone_does_not_collapse_in_200_steps(norm: Any, limits: tuple[float, float]) -> None:
    torch.manual_seed(0)
    student, teacher = random_pair(16, 60, dtype=torch.float32)
    dac = DACKL(limits=limits, top_k=20, clip=Clip(norm=norm))
    optimizer = torch.optim.Adam(dac.parameters(), lr=0.02)
    first = dac(student.detach(), teacher).loss.mean()
    for _ in range(200):
        optimizer.zero_grad()
        terms = dac(student.detach(), teacher)
        terms.loss.mean().backward()
        optimizer.step()
    assert terms.loss.mean() < first  # it is paid to do so
    assert (terms.kept_classes >= 2).all()
    leaf = student.detach().requires_grad_()
    gradient = torch.autograd.grad(dac(leaf, teacher).loss.sum(), leaf)[0]
    assert (gradient.abs().amax(1) > 1e-3).float().mean() > 0.9  # there is something left to learn


def test_coverage_and_the_other_objective_hold_what_is_kept() -> None:
    student, teacher = random_pair(16, 60, dtype=torch.float32)
    kept = {}
    for name, (clip, objective) in {
        "plain": (Clip(min_keep=1), "min"),
        "coverage": (Clip(min_keep=1, coverage=0.9, coverage_weight=30.0), "min"),
        "max": (Clip(min_keep=1), "max"),
    }.items():
        torch.manual_seed(0)
        dac = DACKL(top_k=20, start=(0.1, 0.9), limits=(1.0, 0.0), clip=clip, objective=objective)  # type: ignore
        optimizer = torch.optim.Adam(dac.parameters(), lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            terms = dac(student.detach(), teacher)
            terms.loss.mean().backward()
            optimizer.step()
        kept[name] = (
            terms.kept_mass.mean().item(),
            dac_kl(student, teacher, terms.lower, terms.upper).loss.mean().item(),
        )
    assert kept["coverage"][0] > kept["plain"][0] + 0.05
    assert kept["max"][1] > kept["plain"][1] + 0.05


def test_coverage_adds_its_shortfall() -> None:
    plain = dac_kl(Q.log(), P.log(), *levels(0.2, 0.8), clip=Clip(mask="hard"))
    for coverage, added in ((0.99, 0.03), (0.98 - 1e-9, 0.0)):
        clip = Clip(mask="hard", coverage=coverage, coverage_weight=3.0)
        close(dac_kl(Q.log(), P.log(), *levels(0.2, 0.8), clip=clip).loss - plain.loss, added)


def test_no_tokens() -> None:
    dac = DACKL()
    student = torch.zeros(0, 300, requires_grad=True)
    terms = dac(student, torch.zeros(0, 300))
    assert [len(value) for value in terms] == [0] * 5
    terms.loss.sum().backward()
    assert student.grad is not None and all((p.grad == 0).all() for p in dac.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (x.detach().to(dtype) for x in random_pair(4, 500))
    dac = DACKL()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = dac(student.requires_grad_(), teacher, 2.0)
    assert all(value.dtype == torch.float32 for value in terms)
    expected = dac(student.detach().float(), teacher.float(), 2.0)
    for actual, value in zip(terms, expected, strict=True):
        close(actual, value)
    assert torch.autograd.grad(terms.loss.sum(), student)[0].dtype == dtype


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("norm", NORMS)
def test_forbidden_tokens(mask: Any, norm: Any) -> None:
    student, teacher = random_pair(4, 14, dtype=torch.float32)
    barred = torch.tensor([0, 5])
    both = [x.detach().index_fill(1, barred, -math.inf) for x in (student, teacher)]
    leaf = both[0].requires_grad_()
    dac = DACKL(top_k=14, clip=Clip(mask=mask, norm=norm))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        terms = dac(leaf, both[1])
    gradient = torch.autograd.grad(terms.loss.sum(), [leaf, *dac.parameters()])
    assert terms.loss.isfinite().all() and all(found.isfinite().all() for found in gradient)
    assert (gradient[0][:, barred] == 0).all()
    sharp = torch.full((2, 14), -math.inf).index_fill(1, torch.tensor([3]), 0.0)  # one class has all
    assert dac(student[:2], sharp).loss.isfinite().all()
    with pytest.warns(UserWarning, match="the divergence is infinite"):
        lone = dac_kl(leaf, teacher, *levels(0.0, 1.0, n=4), clip=Clip(mask="hard", norm=norm))
    assert lone.loss.isfinite().all() and (lone.loss > 5).all()


def test_what_is_not_finite_stays_so_and_harms_no_other_token() -> None:
    student, teacher = random_pair(3, 14)
    broken = teacher.clone()
    broken[1, 2] = math.nan
    terms, clean = (DACKL(top_k=5).double()(student, z) for z in (broken, teacher))
    assert terms.loss.isnan().tolist() == [False, True, False]
    close(terms.loss[[0, 2]], clean.loss[[0, 2]].detach(), 0)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_in_chunks(chunk: int) -> None:
    torch.manual_seed(0)
    states, other = torch.randn(2, 7, 6, dtype=torch.float64)
    head, teacher = (nn.Linear(6, 50).double() for _ in range(2))
    dac = DACKL(top_k=8).double()
    nn.init.normal_(dac.subnet[2].weight, std=0.3)  # type: ignore[arg-type]
    inputs = [states.requires_grad_(), *head.parameters(), *dac.parameters()]

    def loss(logits: Tensor, rows: slice) -> Tensor:
        return dac(logits, teacher(other[rows])).loss.sum()

    values = chunked_loss(loss, states, head, chunk), loss(head(states), slice(None))
    gradients = [torch.autograd.grad(value, inputs) for value in values]
    close(values[0], values[1].detach(), 1e-12)
    for actual, expected in zip(*gradients, strict=True):
        close(actual, expected, 1e-12)


def test_a_real_vocabulary() -> None:
    student, teacher = random_pair(3, 50257, dtype=torch.float32)
    dac = DACKL(start=(0.3, 0.9))
    terms = dac(student, teacher)
    lower, upper = (value.detach().double() for value in (terms.lower, terms.upper))
    exact = literal(student.detach().double(), teacher.double(), lower, upper)
    for actual, expected in zip(terms, exact, strict=False):
        torch.testing.assert_close(actual.detach().double(), expected, rtol=1e-4, atol=1e-6)
    found = torch.autograd.grad(terms.loss.sum(), [student, *dac.parameters()])
    assert all(gradient.isfinite().all() for gradient in found)
    assert sum(p.numel() for p in dac.parameters()) == 257 * 64 + 64 + 64 * 2 + 2


def test_state_and_its_optimizer_are_restored() -> None:
    student, teacher = random_pair(4, 30, dtype=torch.float32)

    def step(dac: DACKL, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        dac(student.detach(), teacher).loss.sum().backward()
        optimizer.step()

    ours = DACKL(top_k=10)
    first = torch.optim.Adam(ours.parameters())
    step(ours, first)
    other = DACKL(top_k=10)
    second = torch.optim.Adam(other.parameters())
    other.load_state_dict(ours.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step(ours, first)
    step(other, second)
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), other.parameters(), strict=True))


INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"teacher_logits": torch.zeros(1, 7)}, "over 6 tokens and teacher_logits over 7"),
    ({"student_logits": torch.zeros(1, 2, 6), "teacher_logits": torch.zeros(1, 2, 6)}, r"rows \(N, V\) .*\(1, 2, 6\)"),
    ({"lower": torch.zeros(2)}, r"one level a token, \(1,\), got \(2,\) and \(1,\)"),
    ({"lower": torch.tensor([0.9])}, "0 <= lower <= upper <= 1"),
    ({"upper": torch.tensor([1.1])}, "0 <= lower <= upper <= 1"),
]


@pytest.mark.parametrize(("arguments", "message"), INPUTS)
def test_inputs(arguments: dict[str, Any], message: str) -> None:
    lower, upper = levels(0.2, 0.8)
    usual = {"student_logits": Q.log(), "teacher_logits": P.log(), "lower": lower, "upper": upper}
    with pytest.raises(ValueError, match=message):
        dac_kl(**usual | arguments)


MODULE: list[tuple[dict[str, Any], str]] = [
    ({"features": "full_probs"}, "features='full_probs' needs num_classes"),
    ({"start": (0.6, 0.9)}, r"start=\(0.6, 0.9\) must be a lower level below limits\[0\]"),
    ({"start": (0.1, 0.4)}, r"start=\(0.1, 0.4\) must be"),
]


@pytest.mark.parametrize(("arguments", "message"), MODULE)
def test_settings_of_the_module(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DACKL(**arguments)


def test_another_vocabulary_than_it_was_built_for() -> None:
    with pytest.raises(ValueError, match="num_classes=7, but the logits are of 6 classes"):
        DACKL("full_probs", num_classes=7)(Q.log(), P.log())
