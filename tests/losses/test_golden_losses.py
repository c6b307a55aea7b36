"""Values and gradients of the reference implementations, one line a published number."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from golden_data import assert_golden, load_golden
from torch import Tensor, nn

from lit_kd import losses

Arrays = dict[str, Tensor]


class Case(NamedTuple):
    """A number `key` of a file, the loss that must give it, and {input: key of its gradient}."""

    file: str
    key: str
    loss: Callable[[Arrays], Tensor]
    gradients: dict[str, str] = {}


def staged_cases(file: str, loss: Callable[..., Tensor], count: int, total: str) -> list[Case]:
    def of(stages: range) -> Callable[[Arrays], Tensor]:
        return lambda d: loss([d[f"student_{i}"] for i in stages], [d[f"teacher_{i}"] for i in stages])

    gradients = {f"student_{i}": f"grad_student_{i}" for i in range(count)}
    single = [Case(file, f"loss_{i}", of(range(i, i + 1))) for i in range(count)]
    return [Case(file, total, of(range(count)), gradients), *single]


def of_logits(loss: Callable[..., Tensor], *settings: float) -> Callable[[Arrays], Tensor]:
    return lambda d: loss(d["student_logits"], d["teacher_logits"], *settings)


def of_features(loss: Callable[..., Tensor], *settings: float) -> Callable[[Arrays], Tensor]:
    return lambda d: loss(d["student"], d["teacher"], *settings)


def dkd(alpha: float, beta: float) -> Callable[[Arrays], Tensor]:
    return lambda d: losses.dkd_loss(d["student_logits"], d["teacher_logits"], d["labels"], alpha, beta)


def with_cross_entropy(weight: float, loss: Callable[[Arrays], Tensor]) -> Callable[[Arrays], Tensor]:
    return lambda d: 0.1 * F.cross_entropy(d["student_logits"], d["labels"]) + weight * loss(d)


def fitnet(d: Arrays) -> Tensor:
    hidden = F.conv2d(d["student"], d["conv_weight"], d["conv_bias"], stride=2, padding=1)
    hidden = F.batch_norm(hidden, None, None, d["bn_weight"], d["bn_bias"], training=True)
    return losses.hint_loss(hidden.relu(), d["teacher"])


def vid(d: Arrays) -> Tensor:
    mean = d["student"]
    for name in ("w1", "w2", "w3"):
        mean = F.conv2d(mean.relu() if name != "w1" else mean, d[name][:, :, None, None])
    return losses.vid_loss(mean, d["rho"], d["teacher"])


def cmi(d: Arrays) -> Tensor:
    return losses.conditional_mutual_information(d["logits"], d["labels"])


def cmi_balanced(d: Arrays) -> Tensor:
    labels = torch.arange(5).repeat_interleave(6)
    return losses.conditional_mutual_information(d["logits"].flatten(0, 1), labels)


def surrogate(d: Arrays) -> Tensor:
    return losses.surrogate_kl(d["logits"], d["labels"], d["centroids"])


def mcmi(d: Arrays) -> Tensor:
    return losses.mcmi_loss(d["logits"], d["labels"], d["centroids"], weight=0.25)


kd = of_logits(losses.kd_loss)
standardised = of_logits(losses.logit_standardization_kd_loss)
LOGITS = {"student_logits": "grad_student"}
TOTAL = {"student_logits": "grad_student_total"}
FEATURE = {"student": "grad_student"}
KD_FILES = ("kd_T4_C10", "kd_T4_C100")
DKD_FILES = ("dkd_T4_a1_b8_C10", "dkd_T4_a1_b8_C100")
STANDARDISED = "logit_standardisation_kd"
CASES = [
    *(Case(file, "loss_T2", kd, {"student_logits": "grad_student_T2"}) for file in KD_FILES),
    *(Case(file, "loss_total_ce01_kd09", with_cross_entropy(0.9, kd), TOTAL) for file in KD_FILES),
    *(Case(file, "loss", dkd(1, 8), LOGITS) for file in DKD_FILES),
    *(Case(file, "tckd", dkd(1, 0)) for file in DKD_FILES),
    *(Case(file, "nckd", dkd(0, 1)) for file in DKD_FILES),
    Case("dist_tau1", "loss", of_logits(losses.dist_loss), LOGITS),
    Case("dist_tau4", "loss", of_logits(losses.dist_loss, 2, 2, 4), LOGITS),
    Case(STANDARDISED, "loss_noT2", lambda d: standardised(d) / 2**2, {"student_logits": "grad_student_noT2"}),
    Case(STANDARDISED, "loss_total", with_cross_entropy(9, standardised), TOTAL),
    Case("hint_mse", "loss", of_features(losses.hint_loss), FEATURE),
    Case("fitnet_conv_regressor", "loss", fitnet, FEATURE),
    *staged_cases("at", losses.attention_transfer_loss, 3, "loss_total"),
    *staged_cases("sp", losses.similarity_preserving_loss, 3, "loss_total"),
    *staged_cases("nst", losses.nst_loss, 3, "loss_total"),
    *staged_cases("reviewkd_hcl", losses.hierarchical_context_loss, 4, "loss"),
    Case("pkt", "loss", of_features(losses.pkt_loss), FEATURE),
    Case("rkd_d25_a50", "loss", of_features(losses.rkd_loss), FEATURE),
    Case("rkd_d25_a50", "loss_distance", of_features(losses.rkd_loss, 1, 0)),
    Case("rkd_d25_a50", "loss_angle", of_features(losses.rkd_loss, 0, 1)),
    Case("cc_correlation", "loss", of_features(losses.correlation_congruence_loss), FEATURE),
    Case("vid", "loss", vid, {"student": "grad_student", "rho": "grad_rho", "w1": "grad_w1"}),
    Case("mcmi_centroids_cmi", "cmi", cmi),
    Case("mcmi_cmi_balanced", "cmi", cmi_balanced),
    Case("mcmi_finetune_loss", "kl", surrogate),
    Case("mcmi_finetune_loss", "loss", mcmi, {"logits": "grad_logits"}),
]
IDS = [f"{case.file}-{case.key}" for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_value_and_gradient_in_float32(case: Case) -> None:
    arrays = load_golden(case.file)
    for name in case.gradients:
        arrays[name].requires_grad_()
    loss = case.loss(arrays)
    assert_golden(loss.detach(), arrays[case.key])
    if case.gradients:
        gradients = torch.autograd.grad(loss, [arrays[name] for name in case.gradients])
        for gradient, key in zip(gradients, case.gradients.values(), strict=True):
            assert_golden(gradient, arrays[key])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_value_in_float64(case: Case) -> None:
    arrays = load_golden(case.file, torch.float64)
    assert_golden(case.loss(arrays), arrays[f"{case.key}__float64"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dkd_is_right_where_the_reference_is_nan(dtype: torch.dtype) -> None:
    arrays = load_golden("dkd_extreme_logits", dtype)
    student = arrays["student_logits"].requires_grad_()
    loss = losses.dkd_loss(student, arrays["teacher_logits"], arrays["labels"])
    assert_golden(loss.detach(), arrays["expected_correct"].to(dtype))
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.isfinite().all()


def test_class_centroids() -> None:
    arrays = load_golden("mcmi_centroids_cmi")
    assert_golden(losses.class_centroids(arrays["logits"], arrays["labels"], 5), arrays["centroids"])
    balanced = load_golden("mcmi_cmi_balanced")
    labels = torch.arange(5).repeat_interleave(6)
    assert_golden(losses.class_centroids(balanced["logits"].flatten(0, 1), labels, 5), balanced["centroids"])


def test_attention_fusion() -> None:
    arrays = load_golden("reviewkd_abf")
    fusion = losses.AttentionFusion(student_channels=4, mid_channels=5, teacher_channels=6, fuse=True)
    modules = {"conv1": fusion.reduce[0], "bn1": fusion.reduce[1], "att": fusion.attention}
    modules |= {"conv2": fusion.expand[0], "bn2": fusion.expand[1]}
    for name, module in modules.items():
        for parameter in ("weight", "bias"):
            if f"{name}_{parameter}" in arrays:
                getattr(module, parameter).data = arrays[f"{name}_{parameter}"]
    x, y = arrays["x"].requires_grad_(), arrays["y"].requires_grad_()
    output, residual = fusion(x, y, torch.Size([8, 8]))
    assert_golden(output.detach(), arrays["output"])
    assert_golden(residual.detach(), arrays["residual"])
    gradients = torch.autograd.grad((output * arrays["probe"]).sum(), [x, y])
    assert_golden(gradients[0], arrays["grad_x"])
    assert_golden(gradients[1], arrays["grad_y"])


def test_vid_regressor() -> None:
    arrays = load_golden("vid")
    regressor = losses.VIDRegressor(student_channels=4, teacher_channels=6)
    torch.testing.assert_close(F.softplus(regressor.log_scale) + 1e-5, torch.full((6,), 5.0))
    for layer, name in ((0, "w1"), (2, "w2"), (4, "w3")):
        regressor.mean[layer].weight = nn.Parameter(arrays[name][:, :, None, None])
    regressor.log_scale.data = arrays["rho"]
    assert_golden(regressor(arrays["student"], arrays["teacher"]).detach(), arrays["loss"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crd_two_steps(dtype: torch.dtype) -> None:
    arrays = load_golden("crd", dtype)
    temperature = torch.tensor(0.07).item()  # the reference keeps it in float32
    crd = losses.CRDLoss(6, 7, feature_dim=5, num_negatives=8, temperature=temperature, negatives="instance")
    crd.to(dtype).set_samples(torch.arange(20))
    crd.memory.bank_student.copy_(arrays["bank1_initial"])
    crd.memory.bank_teacher.copy_(arrays["bank2_initial"])
    for head, side in ((crd.student_head, "s"), (crd.teacher_head, "t")):
        head.weight.data, head.bias.data = arrays[f"W{side}"], arrays[f"b{side}"]
    for step in (1, 2):
        student = arrays[f"student_{step}"].requires_grad_()
        contrast = arrays[f"contrast_index_{step}"][:, 1:]  # the reference puts the positive first
        loss = crd(student, arrays[f"teacher_{step}"], arrays[f"index_{step}"], contrast)
        if dtype == torch.float64:
            assert_golden(loss.detach(), arrays[f"loss_{step}__float64"])
            continue
        # The bank has moved by now: the gradient must still be that of the old one
        gradients = torch.autograd.grad(loss, [student, crd.student_head.weight])
        assert_golden(loss.detach(), arrays[f"loss_{step}"])
        assert_golden(crd.Z, arrays[f"Z_{step}"])
        assert_golden(crd.memory.bank_student, arrays[f"bank1_after_{step}"])
        assert_golden(crd.memory.bank_teacher, arrays[f"bank2_after_{step}"])
        assert_golden(gradients[0], arrays[f"grad_student_{step}"])
        assert_golden(gradients[1], arrays[f"grad_Ws_{step}"])
