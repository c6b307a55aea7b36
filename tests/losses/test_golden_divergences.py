"""Divergences against DistiLLM, DSKD, AKL, DistillKit, TRL and SSB, one line a published number."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from golden_data import assert_golden, load_golden
from torch import Tensor

from lit_kd import losses

Arrays = dict[str, Tensor]
Loss = Callable[[Arrays], Tensor]


class Case(NamedTuple):
    """A loss, the key of its float32 value, that of its gradient and that of the float64 value."""

    file: str
    loss: Loss
    value: str
    gradient: str
    exact: str


def reduced(divergence: Callable[..., Tensor], reduction: str = "token", **settings: float) -> Loss:
    return lambda d: divergence(
        d["student_logits"], d["teacher_logits"], d["labels"] != -100, reduction=reduction, **settings
    )


def case(file: str, key: str, loss: Loss, gradient: str = "") -> Case:
    return Case(file, loss, key, gradient or f"grad_student_{key}", f"{key}__float64")


def corrected(key: str, divergence: Callable[..., Tensor], **settings: float) -> Case:
    """DistiLLM leaves the entropy out: its gradient is right, its value is that of the divergence plus a constant."""
    file = "distillm_divergences"
    return Case(file, reduced(divergence, **settings), "", f"grad_student_{key}", f"expected_correct_{key}")


DISTILLM = {
    "reverse_kl": reduced(losses.reverse_kl),
    "js_0.9": reduced(losses.generalized_jsd, beta=0.1),
    "js_0.5": reduced(losses.generalized_jsd),
    "tv": reduced(losses.total_variation),
    "skewed_reverse_0.1": reduced(losses.skew_reverse_kl),
    "skewed_reverse_0.5": reduced(losses.skew_reverse_kl, alpha=0.5),
}
DSKD = {
    "adaptive": (losses.adaptive_kl, {"variant": "dskd"}),
    "forward": (losses.forward_kl, {}),
    "reverse": (losses.reverse_kl, {}),
    "skewed_forward": (losses.skew_forward_kl, {}),
    "skewed_reverse": (losses.skew_reverse_kl, {}),
}


def sparse(tail: str, temperature: float, values: str = "topk_logprobs") -> Loss:
    """DistillKit's loss: T^2 and the mean over tokens. Its log-probabilities are of T = 1."""

    def loss(d: Arrays) -> Tensor:
        log_p = d[values] / temperature
        settings = {"tail": tail, "mask": d["labels"] != -100, "temperature": temperature}
        return temperature**2 * losses.topk_kl(d["student_logits"], d["topk_ids"], log_p, **settings)

    return loss


def dense(d: Arrays) -> Tensor:
    return 4 * losses.forward_kl(d["student_logits"], d["teacher_logits_full"], d["labels"] != -100, temperature=2.0)


def ssb(d: Arrays) -> Tensor:
    return 4 * losses.forward_kl(d["student_logits"], d["teacher_logits"], d["mask"], temperature=2.0)


CASES = [
    *(case("distillm_divergences", key, loss) for key, loss in DISTILLM.items()),
    corrected("forward_kl", losses.forward_kl),
    corrected("symmetric_0.9", losses.symmetric_kl, reverse_weight=0.9),
    corrected("skewed_forward_0.1", losses.skew_forward_kl),
    corrected("skewed_forward_0.5", losses.skew_forward_kl, alpha=0.5),
    *(
        case(f"dskd_divergences_T{t}", key, reduced(divergence, "sum", temperature=float(t), **settings))
        for key, (divergence, settings) in DSKD.items()
        for t in (1, 2)
    ),
    *(
        case("trl_generalized_jsd", f"b{beta}_T{t}", reduced(losses.generalized_jsd, temperature=float(t), beta=beta))
        for beta in (0, 0.1, 0.5, 1)
        for t in (1, 2)
    ),
    case("akl_official", "loss", reduced(losses.adaptive_kl), "grad_student"),
    case("ssb_kd_loss", "loss", ssb, "grad_student"),
    *(case("distillkit_sparse_kl", f"loss_zero_T{t}", sparse("renormalize_teacher", t)) for t in (1, 2)),
    *(
        case("distillkit_sparse_kl", f"loss_logits_zero_T{t}", sparse("renormalize_teacher", t, "topk_logits"))
        for t in (1, 2)
    ),
    case("distillkit_sparse_kl", "loss_uniform_T1", sparse("bucket", 1)),
    case("distillkit_sparse_kl", "loss_dense_T2", dense, "grad_student_dense_T2"),
]
IDS = [f"{one.file}-{one.exact}" for one in CASES]


@pytest.mark.parametrize("one", CASES, ids=IDS)
def test_value_and_gradient_in_float32(one: Case) -> None:
    arrays = load_golden(one.file)
    loss = one.loss(arrays | {"student_logits": arrays["student_logits"].requires_grad_()})
    if one.value:
        assert_golden(loss.detach(), arrays[one.value])
    (gradient,) = torch.autograd.grad(loss, arrays["student_logits"])
    assert_golden(gradient, arrays[one.gradient])


@pytest.mark.parametrize("one", CASES, ids=IDS)
def test_value_in_float64(one: Case) -> None:
    arrays = load_golden(one.file, torch.float64)
    assert_golden(one.loss(arrays), arrays[one.exact])


def test_jsd_of_dskd_whose_logarithms_have_an_epsilon() -> None:
    for t in (1, 2):
        arrays = load_golden(f"dskd_divergences_T{t}", torch.float64)
        loss = reduced(losses.generalized_jsd, "sum", temperature=float(t))(arrays)
        torch.testing.assert_close(loss, arrays["js__float64"], rtol=1e-6, atol=0)


def test_reductions_of_trl() -> None:
    arrays = load_golden("trl_generalized_jsd", torch.float64)
    total = reduced(losses.generalized_jsd, "sum")(arrays)
    assert_golden(total, arrays["sum_b0.5_T1__float64"])
    assert_golden(total / 7, arrays["items_b0.5_T1__float64"])
    whole = losses.generalized_jsd(arrays["student_logits"], arrays["teacher_logits"])
    assert_golden(whole, arrays["expected_correct_nolabels_b0.5_T1"])
    assert whole < arrays["nolabels_b0.5_T1__float64"] / 2  # TRL divides by the sequences


def test_forward_kl_is_not_distillms_cross_entropy() -> None:
    arrays = load_golden("distillm_divergences", torch.float64)
    entropy = arrays["offset_forward_kl__float64"]
    assert entropy > 1
    assert_golden(reduced(losses.forward_kl)(arrays) + entropy, arrays["forward_kl__float64"])


FORBIDDEN = {
    "forward_kl": reduced(losses.forward_kl),
    "skewed_forward_0.1": reduced(losses.skew_forward_kl),
    **{key: DISTILLM[key] for key in ("reverse_kl", "js_0.9", "tv", "skewed_reverse_0.1")},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("key", FORBIDDEN)
def test_a_token_forbidden_in_both(key: str) -> None:
    arrays = load_golden("distillm_minus_inf_token", torch.float64)
    student = arrays["student_logits"].requires_grad_()
    loss = FORBIDDEN[key](arrays)
    if "forward" in key:  # the reference's value is the cross-entropy
        log_p = arrays["teacher_logits"].log_softmax(-1)[..., :-1]
        loss = loss - (log_p.exp() * log_p).sum(-1)[arrays["labels"] != -100].mean()
    assert_golden(loss.detach(), arrays[f"{key}__float64"])
    (gradient,) = torch.autograd.grad(loss, student)
    assert_golden(gradient, arrays[f"expected_correct_grad_{key}"])
    assert (gradient[..., -1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bucket_where_the_teachers_tail_is_below_rounding(dtype: torch.dtype) -> None:
    arrays = load_golden("distillkit_uniform_full_mass", dtype)
    student = arrays["student_logits"].requires_grad_()
    loss = losses.topk_kl(student, arrays["topk_ids"], arrays["topk_logprobs"], mask=arrays["mask"], reduction="sum")
    torch.testing.assert_close(loss.detach().double(), arrays["expected_correct"], rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()


def test_bucket_of_a_remainder_spread_over_the_missing_tokens() -> None:
    arrays = load_golden("distillkit_sparse_kl", torch.float64)
    log_p = arrays["topk_logprobs"]
    missing = arrays["student_logits"].shape[-1] - log_p.shape[-1]
    tail = (1 - log_p.exp().sum(-1, keepdim=True)) / missing
    log_z = torch.cat([log_p / 2, tail.log() / 2 + torch.tensor(missing).log()], -1).logsumexp(-1, keepdim=True)
    settings = {"mask": arrays["labels"] != -100, "temperature": 2.0, "reduction": "sum"}
    loss = losses.topk_kl(arrays["student_logits"], arrays["topk_ids"], log_p / 2 - log_z, **settings)
    torch.testing.assert_close(loss, arrays["expected_correct_sum_uniform_T2"], rtol=1e-6, atol=0)
