"""Numbers and laws of methods/mcmi.md section 4, in nats."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_kd.losses import class_centroids, conditional_mutual_information, mcmi_loss, surrogate_kl
from lit_kd.losses.shared import Reduction

P = torch.tensor(
    [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]], dtype=torch.float64
)
LOGITS = P.log()
LABELS = torch.tensor([0, 0, 0, 1, 1])
CENTROIDS = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)


def close(actual: Tensor, expected: float | list[float], atol: float = 6e-11) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def random_sample(seed: int, n: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator)


def test_one_class() -> None:
    p, labels = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64), torch.tensor([0, 0])
    close(conditional_mutual_information(p.log(), labels, reduction="none"), [0.1163217566, 0.0871766936])
    close(conditional_mutual_information(p.log(), labels), 0.1017492251)


def test_two_classes_weighted_by_their_samples() -> None:
    per_sample = conditional_mutual_information(LOGITS, LABELS, reduction="none")
    close(per_sample, [0.0268124543, 0.0239120506, 0, 0.0375103960, 0.0291491245])
    value = conditional_mutual_information(LOGITS, LABELS)
    close(value, 0.0234768051)
    close(F.cross_entropy(LOGITS, LABELS), 0.4589233847)
    close(mcmi_loss(LOGITS, LABELS, CENTROIDS, weight=0.25), 0.4530541834)
    for wrong in (
        0.0251189643,
        0.0248414705,
        0.0078256017,
    ):  # mean of class means, KL(Q || P), mean of elements
        assert abs(value.item() - wrong) > 1e-3


def test_reverse_direction_is_another_number() -> None:
    reverse = F.kl_div(LOGITS, CENTROIDS[LABELS], reduction="batchmean")
    close(reverse, 0.0248414705)
    assert not torch.allclose(surrogate_kl(LOGITS, LABELS, CENTROIDS), reverse, rtol=1e-2)


def test_centroids_of_logits() -> None:
    logits = torch.tensor([[2, 0, -1], [1, 1, 0], [0, 3, 1], [-1, 2, 2]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    third = torch.zeros(1, 3, dtype=torch.float64)
    centroids = class_centroids(torch.cat([logits, third]), torch.tensor([0, 0, 1, 1, 2]), 3)
    close(centroids[0], [0.6330567664, 0.2682569988, 0.0986862348])
    close(centroids[1], [0.0331494819, 0.6658251428, 0.3010253753])
    close(conditional_mutual_information(logits, labels), 0.0939190440)
    close(F.cross_entropy(logits, labels), 0.4798556905)
    close(mcmi_loss(logits, labels, centroids, weight=0.2), 0.4610718817)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_invariants(seed: int) -> None:
    logits, labels = random_sample(seed)
    value = conditional_mutual_information(logits, labels)
    assert -1e-12 <= value <= math.log(logits.shape[1])
    order, columns = torch.randperm(len(logits)), torch.randperm(logits.shape[1])
    for same in (
        conditional_mutual_information(logits[order], labels[order]),
        conditional_mutual_information(logits[:, columns], labels),
        conditional_mutual_information(logits + torch.randn(len(logits), 1, dtype=torch.float64), labels),
    ):
        torch.testing.assert_close(same, value, rtol=1e-9, atol=1e-12)


def test_bounds_are_reached() -> None:
    assert conditional_mutual_information(LOGITS[[0, 0, 3]], torch.tensor([0, 0, 1])).abs() < 1e-12
    spread = conditional_mutual_information(12 * torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.long))
    assert 0.999 * math.log(3) < spread < math.log(3)


def test_batches_add_up_to_the_centroids() -> None:
    logits, labels = random_sample(0, n=40)
    sums = torch.zeros(4, 4, dtype=torch.float64)
    for part in torch.arange(40).split(7):
        sums.index_add_(0, labels[part], logits[part].softmax(1))
    torch.testing.assert_close(class_centroids(logits, labels, 4), sums / sums.sum(1, keepdim=True))


def test_gradient_and_sign() -> None:
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(surrogate_kl(logits, LABELS, CENTROIDS), logits)
    close(gradient[0], [0.0178273516, -0.0172911025, -0.0005362491])
    assert gradient[2].abs().max() < 1e-15
    before = conditional_mutual_information(LOGITS, LABELS)
    close(conditional_mutual_information(LOGITS + 0.5 * gradient, LABELS), 0.0249660, atol=5e-7)
    close(conditional_mutual_information(LOGITS - 0.5 * gradient, LABELS), 0.0220341, atol=5e-7)

    loss = mcmi_loss(logits, LABELS, CENTROIDS, weight=0.25)
    (gradient,) = torch.autograd.grad(loss, logits)
    close(gradient[0], [-0.0644568379, 0.0443227756, 0.0201340623])
    close(mcmi_loss(LOGITS - 0.5 * gradient, LABELS, CENTROIDS, weight=0.25), 0.43151999, atol=5e-9)

    (plain,) = torch.autograd.grad(F.cross_entropy(logits, LABELS), logits)
    towards_cmi = plain - gradient  # what the weight adds to a descent step
    assert conditional_mutual_information(LOGITS + 0.5 * towards_cmi, LABELS) > before


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_weight_zero_is_the_cross_entropy_bit_for_bit(reduction: Reduction) -> None:
    logits, labels = random_sample(1)
    logits = logits.float().requires_grad_()
    loss = mcmi_loss(logits, labels, torch.eye(4), weight=0, reduction=reduction)
    plain = F.cross_entropy(logits, labels, reduction=reduction)
    assert torch.equal(loss, plain)
    assert torch.equal(*(torch.autograd.grad(value.sum(), logits)[0] for value in (loss, plain)))


def test_centroid_minimises_the_surrogate() -> None:
    least = surrogate_kl(LOGITS, LABELS, CENTROIDS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        noise = 0.3 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        assert surrogate_kl(LOGITS, LABELS, (CENTROIDS.log() + noise).softmax(1)) > least


def test_compensation_identity() -> None:
    other = torch.tensor([[0.4, 0.4, 0.2], [0.2, 0.5, 0.3]], dtype=torch.float64)
    drift = (CENTROIDS[:2] * (CENTROIDS[:2] / other).log()).sum(1) @ torch.tensor([0.6, 0.4], dtype=torch.float64)
    close(surrogate_kl(LOGITS, LABELS, other), 0.1263403748)
    close(conditional_mutual_information(LOGITS, LABELS) + drift, 0.1263403748)


def test_frozen_and_moving_gradients_agree_at_the_centroid_only() -> None:
    logits = LOGITS.clone().requires_grad_()
    (moving,) = torch.autograd.grad(conditional_mutual_information(logits, LABELS), logits)
    (frozen,) = torch.autograd.grad(surrogate_kl(logits, LABELS, CENTROIDS), logits)
    torch.testing.assert_close(frozen, moving, rtol=0, atol=1e-10)
    (elsewhere,) = torch.autograd.grad(surrogate_kl(logits, LABELS, CENTROIDS.roll(1, 1)), logits)
    assert (elsewhere - moving).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.25, 0.045356),
        (0.5, 0.102688),
        (1, 0.095416),
        (2, 0.040348),
        (4, 0.011601),
        (8, 0.002984),
        (100, 1.9e-5),
    ],
)
def test_not_monotone_in_temperature(temperature: float, expected: float) -> None:
    logits = torch.tensor([[4, 1, 0], [2, 1.5, 0], [3, 0, 1]], dtype=torch.float64)
    value = conditional_mutual_information(logits / temperature, torch.zeros(3, dtype=torch.long))
    close(value, expected, atol=6e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 1e4]]).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mcmi_loss(logits, torch.tensor([1, 0]), torch.eye(3), weight=0.25)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"these have none: \[2\]"):
        class_centroids(LOGITS, LABELS, 3)
    with pytest.raises(ValueError, match="3 classes, but num_classes is 4"):
        class_centroids(LOGITS, LABELS, 4)
    with pytest.raises(ValueError, match="logits have 3 classes, but centroids 2"):
        surrogate_kl(LOGITS, LABELS, CENTROIDS[:, :2])
