"""FGSM and PGD against closed forms (N1 to N3, N8 to N11, N13 of the specification), and what every attack shares."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from linear import Linear, grey, minimal_distance
from torch import Tensor, nn

from lit_kd.attacks import attack_mode, fgsm, pgd
from lit_kd.attacks.objectives import dlr, margin

EPS = 0.03


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def batch(network: nn.Module, count: int = 64) -> tuple[Tensor, Tensor]:
    image = grey(count)
    with torch.no_grad():
        return image, network(image).argmax(1)


# FGSM


def test_fgsm_of_two_classes_is_the_sign_of_the_weights() -> None:  # N1
    network = Linear(2)
    image, label = batch(network)
    result = fgsm(network, image, label, eps=EPS)
    difference = (network.weight[label] - network.weight[1 - label]).detach()
    expected = image - EPS * difference.sign().view_as(image)
    torch.testing.assert_close(result.adversarial, expected, rtol=0, atol=0)
    fall = margin(network(result.adversarial), label) - margin(network(image), label)
    torch.testing.assert_close(fall, EPS * difference.norm(p=1, dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targeted", [False, True])
def test_fgsm_equals_its_formula_to_the_bit(targeted: bool) -> None:  # N2
    network = conv_net()
    image = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    label = torch.arange(16) % 10
    target = (label + 1) % 10 if targeted else None
    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(x), label if target is None else target), x)
    sign = gradient.sign() if target is None else -gradient.sign()
    result = fgsm(network, image, label, eps=EPS, target=target)
    assert torch.equal(result.adversarial, (image + EPS * sign).clamp(0, 1))
    assert result.linf.max() <= EPS + 1e-6
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    prediction = network(result.adversarial).argmax(1)
    assert torch.equal(result.success, prediction != label if target is None else prediction == target)


# PGD


@pytest.mark.parametrize(("classes", "loss"), [(2, "ce"), (2, "margin"), (10, "margin")])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
def test_pgd_flips_just_above_the_minimal_distance_and_not_below(
    classes: int, loss: Any, norm: Any, dual: float
) -> None:  # N3
    network = Linear(classes)
    image, label = batch(network, 12)
    # Of ten classes each has its own nearest point, so the attack is sent to the nearest class.
    target = None if classes == 2 else nearest_class(network, image, label, dual)
    for i, distance in enumerate(minimal_distance(network, image, label, dual).tolist()):
        x, y, t = image[i : i + 1], label[i : i + 1], None if target is None else target[i : i + 1]
        settings: dict[str, Any] = {"norm": norm, "loss": loss, "steps": 50, "restarts": 2}
        assert pgd(network, x, y, eps=1.01 * distance, target=t, **settings).success.all()
        for any_loss in ("ce", "margin", *(("dlr",) if classes > 2 else ())):
            below = {**settings, "loss": any_loss, "eps": 0.99 * distance}
            assert not pgd(network, x, y, **below).success.any()


def nearest_class(network: Linear, image: Tensor, label: Tensor, dual: float) -> Tensor:
    logits, weight = network(image).detach().double(), network.weight.detach().double()
    gap = logits.gather(1, label[:, None]) - logits
    norm = (weight[label][:, None] - weight[None]).norm(p=dual, dim=2)
    return (gap / norm).scatter(1, label[:, None], torch.inf).argmin(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_stays_in_ball_and_range(norm: Any) -> None:
    network = conv_net()
    image = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)).round()  # on the borders
    result = pgd(network, image, torch.zeros(16, dtype=torch.int64), eps=0.5, norm=norm, stop_early=False, restarts=2)
    assert (result.linf if norm == "linf" else result.l2).max() <= 0.5 + 1e-6
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    torch.testing.assert_close(result.l2, (result.adversarial - image).flatten(1).norm(dim=1))
    torch.testing.assert_close(result.linf, (result.adversarial - image).abs().flatten(1).amax(1))


def test_pgd_of_radius_zero_returns_the_image() -> None:  # N13
    network = Linear()
    image, label = batch(network)
    for norm in ("linf", "l2"):
        result = pgd(network, image, label, eps=0.0, norm=norm)  # type: ignore[arg-type]
        assert torch.equal(result.adversarial, image) and not result.success.any()


def test_pgd_keeps_the_best_iterate_and_early_stopping_loses_nothing() -> None:
    network = conv_net()
    image, label = batch(network)
    full = pgd(network, image, label, eps=0.1, steps=10, stop_early=False)
    early = pgd(network, image, label, eps=0.1, steps=10)
    assert torch.equal(full.success, early.success)
    assert (margin(network(full.adversarial), label) >= margin(network(early.adversarial), label) - 1e-6).all()
    assert (early.queries <= full.queries).all() and (full.queries == 11).all()
    # From a large step that overshoots, the last iterate is not the best.
    wild = pgd(network, image, label, eps=0.02, alpha=0.04, steps=5, random_start=False, stop_early=False)
    assert (margin(network(wild.adversarial), label) >= margin(network(image), label)).all()


def test_misclassified_images_are_successes_at_distance_zero() -> None:
    network = Linear()
    image, label = batch(network)
    result = pgd(network, image, (label + 1) % 10, random_start=False)
    assert result.success.all() and not result.l2.any() and (result.queries == 1).all()


def test_targeted_pgd_reaches_the_target() -> None:
    network = Linear()
    image, label = batch(network)
    target = (label + 3) % 10
    result = pgd(network, image, label, eps=0.3, steps=50, target=target)
    assert torch.equal(network(result.adversarial).argmax(1), target) and result.success.all()


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_companions_in_the_batch_do_not_matter(attack: Any) -> None:  # N8
    network = Linear()
    image, label = batch(network)
    seeded = {} if attack is fgsm else {"index": torch.arange(64) + 7, "restarts": 2, "steps": 5}
    together = attack(network, image, label, eps=0.01, **seeded)
    chunks = attack(network, image, label, eps=0.01, batch_size=5, **seeded)
    torch.testing.assert_close(chunks.adversarial, together.adversarial, rtol=0, atol=1e-6)
    for i in range(0, 64, 9):
        own = {**seeded, "index": seeded["index"][i : i + 1]} if seeded else {}
        alone = attack(network, image[i : i + 1], label[i : i + 1], eps=0.01, **own)
        torch.testing.assert_close(alone.adversarial, together.adversarial[i : i + 1], rtol=0, atol=1e-6)
        assert torch.equal(alone.success, together.success[i : i + 1])


def test_random_starts_leave_the_global_generators_alone_and_follow_their_seed() -> None:
    network = Linear()
    image, label = batch(network)
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first, again, other = (pgd(network, image, label, eps=1e-3, seed=seed).adversarial for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]


# Temperature and scale


@pytest.mark.parametrize("tau", [1.0, 20.0])
def test_gradient_of_cross_entropy_at_a_temperature(tau: float) -> None:  # N9
    network, image = Linear(), grey(4, torch.float64).requires_grad_()
    logits = network(image)
    label = logits.argmax(1)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits / tau, label, reduction="sum"), image)
    residual = (logits / tau).softmax(1) - F.one_hot(label, 10)
    expected = residual @ network.weight.double() / tau
    torch.testing.assert_close(gradient.flatten(1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("gap", "dtype", "probability_is_one", "gradient_is_zero"),
    [
        (20.0, torch.float32, True, False),
        (110.0, torch.float32, True, True),
        (110.0, torch.float64, True, False),
        (760.0, torch.float64, True, True),
    ],
)
def test_saturation(gap: float, dtype: torch.dtype, probability_is_one: bool, gradient_is_zero: bool) -> None:  # N10
    logits = torch.tensor([[gap, 0.0]], dtype=dtype, requires_grad=True)
    label = torch.tensor([0])
    assert bool(1 - logits.softmax(1)[0, 0] == 0) == probability_is_one
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, label), logits)
    assert bool((gradient == 0).all()) == gradient_is_zero
    (softened,) = torch.autograd.grad(F.cross_entropy(logits / 100, label), logits)
    assert (softened != 0).all()


def test_fgsm_fails_where_the_gradient_is_masked_and_only_there() -> None:  # N10, on scaled linear networks
    plain, scaled = Linear(), Linear(scale=400.0)
    image, label = batch(plain)
    masked = fgsm(scaled, image, label, eps=0.2)
    assert 0.2 < masked.zero_gradient.float().mean() < 1
    assert torch.equal(~masked.success, masked.zero_gradient)
    assert fgsm(plain, image, label, eps=0.2).success.all()
    for settings in ({"temperature": 400.0}, {"loss": "margin"}, {"loss": "dlr"}):
        assert fgsm(scaled, image, label, eps=0.2, **settings).success.all()
    assert not fgsm(scaled, image.double(), label, eps=0.2).zero_gradient.any()


def test_dlr_does_not_see_scale_and_shift() -> None:  # N11
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label, target = logits.argmax(1), logits.argmin(1)
    for t in (None, target):
        torch.testing.assert_close(dlr(1000 * logits - 77, label, t), dlr(logits, label, t), rtol=0, atol=1e-6)


def test_dlr_equals_its_definition_and_turns_into_the_margin_for_a_label_that_ranks_third() -> None:
    logits = torch.tensor([[5.0, 3.0, 1.0, 0.5]])
    assert dlr(logits, torch.tensor([0])).item() == pytest.approx((3 - 5) / (5 - 1))
    assert dlr(logits, torch.tensor([1])).item() == pytest.approx((5 - 3) / (5 - 1))
    assert dlr(logits, torch.tensor([2])).item() == pytest.approx(5 - 1)
    assert dlr(logits, torch.tensor([0]), torch.tensor([3])).item() == pytest.approx((0.5 - 5) / (5 - (1 + 0.5) / 2))


def test_margin_masks_by_minus_infinity() -> None:
    logits = torch.tensor([[-1000.0, -1002.0]])
    assert margin(logits, torch.tensor([0])).item() == -2
    assert margin(logits, torch.tensor([0]), torch.tensor([1])).item() == -2


# The mode of the network


def test_attack_mode_restores_every_flag_also_after_an_exception() -> None:
    network = conv_net().train()
    network[1].eval()  # a batch norm that its user has frozen
    network[0].weight.requires_grad_(False)

    def flags() -> list[bool]:
        return [m.training for m in network.modules()] + [p.requires_grad for p in network.parameters()]

    before = flags()
    with pytest.raises(RuntimeError, match="stop"), torch.no_grad(), attack_mode(network):  # noqa: PT012
        assert not any(m.training for m in network.modules())
        assert not any(p.requires_grad for p in network.parameters())
        assert torch.is_grad_enabled()
        raise RuntimeError("stop")
    assert flags() == before


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_attacks_work_where_gradients_are_off(attack: Any, context: Any) -> None:
    network = conv_net()
    image, label = batch(network)
    expected = attack(network, image, label)
    with context():
        inside = attack(network, image.clone(), label.clone())  # clones made here are inference tensors
    assert torch.equal(inside.adversarial, expected.adversarial) and inside.linf.max() > 0.01
    assert all(parameter.grad is None for parameter in network.parameters())


def test_autocast_of_the_caller_does_not_reach_the_attack() -> None:
    network = conv_net()
    image, label = batch(network)
    expected = fgsm(network, image, label)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fgsm(network, image, label).adversarial, expected.adversarial)


def test_rounding_below_zero_is_tolerated_and_an_empty_batch_gives_an_empty_result() -> None:
    network = Linear()
    image, label = batch(network)
    image = image - image.min() - 3e-8
    assert fgsm(network, image, label).adversarial.min() >= 0
    for attack in (fgsm, pgd):
        assert attack(network, image[:0], label[:0]).success.shape == (0,)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": grey() * 255}, r"Images span \[.*\] and an attack needs pixels in \[0, 1\]"),
        ({"image": (grey() - 0.5) / 0.2}, r"give the normalisation to the network"),
        ({"image": grey().half()}, r"needs float32 or float64"),
        ({"image": grey()[0]}, r"needs \(B, C, H, W\)"),
        ({"image": grey() * torch.nan}, r"Images span \[nan"),
        ({"eps": 8.0}, r"eps=8.0 must lie in \[0, 1\].*write 8/255"),
        ({"label": torch.full((64,), 10)}, r"label spans \[10, 10\] but the network has 10 classes, 0 to 9"),
        ({"label": torch.zeros(64)}, r"label must be int64"),
        ({"target": torch.full((64,), -1)}, r"target spans \[-1, -1\]"),
        ({"model": nn.Sequential(Linear(), nn.Softmax(1))}, r"gives probabilities .* remove the softmax"),
        ({"model": Linear(2), "label": torch.zeros(64, dtype=torch.int64), "loss": "dlr"}, r"2 classes .* needs 3"),
        ({"model": nn.Sequential(nn.Conv2d(3, 2, 1))}, r"gives an output of shape"),
        ({"model": Linear(scale=float("inf"))}, r"logits that are not finite"),
    ],
)
@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_bad_input_gets_one_sentence(attack: Any, change: dict[str, Any], sentence: str) -> None:
    settings = {"model": Linear(), "image": grey(), "label": torch.arange(64) % 10, **change}
    with pytest.raises(ValueError, match=sentence):
        attack(settings.pop("model"), settings.pop("image"), settings.pop("label"), **settings)
