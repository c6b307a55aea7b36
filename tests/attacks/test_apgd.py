"""APGD against the official code, closed forms (N3, N8, N11 of the specification) and what every attack promises."""

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from linear import Linear, grey, minimal_distance
from torch import Tensor, nn

from lit_kd.attacks.apgd import _windows, apgd
from lit_kd.attacks.geometry import random_start
from lit_kd.attacks.objectives import margin

EPS = 0.03


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(128, 10),
    ).eval()  # fmt: skip


def batch(network: nn.Module, count: int = 32) -> tuple[Tensor, Tensor]:
    image = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return image, prediction(network, image)


def prediction(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image).argmax(1)


# The official code


class Recorder(nn.Module):
    """Keeps the points at which a network is asked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.points = network, []

    def forward(self, image: Tensor) -> Tensor:
        self.points.append(image.detach().clone())
        return self.network(image)


@pytest.fixture
def set_dtype() -> Iterator[Any]:
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted dlr"])
@pytest.mark.parametrize(
    ("norm", "eps", "dtype", "tolerance"),
    [
        ("linf", 0.01, torch.float32, 0),
        ("linf", 0.05, torch.float32, 0),
        ("l2", 0.1, torch.float64, 1e-6),
        ("l2", 0.5, torch.float64, 1e-6),
    ],
)
def test_walk_is_that_of_the_official_code(
    set_dtype: Any, norm: Any, eps: float, dtype: torch.dtype, tolerance: float, loss: str
) -> None:
    """From one start all 101 points are the same until the sample is fooled.

    The L2 ball in float64: projections are rounded differently, and in float32 the last digit of the loss then decides
    in places whether it has risen, and so whether a step is halved (18 of these 192 walks part by up to 4e-4). Beyond
    its first adversarial point a walk on the DLR may part: once the label ranks third, ours is the margin.
    """
    set_dtype(dtype)
    official = pytest.importorskip("pyautoattack.autopgd_base")
    network = conv_net()
    image, label = batch(network)
    targeted = loss == "targeted dlr"
    target = network(image).sort(1).indices[:, -2] if targeted else None

    ours = Recorder(network)
    settings: dict[str, Any] = {"eps": eps, "norm": norm, "loss": loss[-3:].strip(), "target": target}
    result = apgd(ours, image, label, stop_early=False, **settings)
    walk = torch.stack(ours.points[1:-1])  # without the check of the network and the verdict

    theirs = Recorder(network)
    attack_class = official.APGDAttack_targeted if targeted else official.APGDAttack
    named = {} if targeted else {"loss": loss}
    attack = attack_class(theirs, n_iter=100, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, device="cpu", **named)
    attack.init_hyperparam(image)
    attack.y_target = target
    start = random_start(image, torch.arange(len(image)), 0, 0, eps, norm)
    _, correct, _, _ = attack.attack_single_run(image, label, x_init=start)
    expected = torch.stack(theirs.points)

    assert walk.shape == expected.shape == (101, 32, 3, 8, 8)
    fooled = torch.stack([prediction(network, points) != label for points in expected])
    unfooled_before = fooled.cumsum(0) - fooled.long() == 0
    difference = (walk - expected).abs().flatten(2).amax(2)
    assert difference[unfooled_before].max() <= tolerance
    assert fooled[-1].any() and not fooled.any(0).all()  # else there would be little to compare
    if targeted:
        return  # success here is the target, there any other class
    assert torch.equal(result.success, ~correct.bool())
    # With early stopping a sample ends at its first adversarial point.
    early = apgd(network, image, label, **settings)
    assert torch.equal(early.success, result.success)
    first = fooled.long().argmax(0)
    for i in early.success.nonzero().squeeze(1).tolist():
        torch.testing.assert_close(early.adversarial[i], expected[first[i], i], rtol=0, atol=tolerance)
        assert early.queries[i] == first[i] + 1


def test_checkpoints_are_those_of_the_paper() -> None:
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    expected = [math.ceil(round(100 * share, 6)) for share in shares[1:-1]]
    assert list(_windows(100)) == expected == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(_windows(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert _windows(1) == {1: 1} and _windows(0) == {}


# Closed forms


@pytest.mark.parametrize(("classes", "loss"), [(2, "ce"), (2, "margin"), (10, "margin"), (10, "dlr")])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
def test_flips_just_above_the_minimal_distance_and_not_below(classes: int, loss: Any, norm: Any, dual: float) -> None:
    network = Linear(classes)  # N3
    image = grey(8)
    label = prediction(network, image)
    # Of ten classes each has its own nearest point, so the attack is sent to the nearest class.
    target = None if classes == 2 else nearest_class(network, image, label, dual)
    for i, distance in enumerate(minimal_distance(network, image, label, dual).tolist()):
        x, y, t = image[i : i + 1], label[i : i + 1], None if target is None else target[i : i + 1]
        assert apgd(network, x, y, eps=1.01 * distance, norm=norm, loss=loss, target=t).success.all()
        assert not apgd(network, x, y, eps=0.99 * distance, norm=norm, loss=loss).success.any()


def nearest_class(network: Linear, image: Tensor, label: Tensor, dual: float) -> Tensor:
    logits, weight = network(image).detach().double(), network.weight.detach().double()
    gap = logits.gather(1, label[:, None]) - logits
    norm = (weight[label][:, None] - weight[None]).norm(p=dual, dim=2)
    return (gap / norm).scatter(1, label[:, None], torch.inf).argmin(1)


def test_success_with_dlr_does_not_depend_on_the_scale_of_the_logits() -> None:  # N11
    plain, scaled = Linear(), Linear(scale=1000.0)
    image = grey()
    label = prediction(plain, image)
    eps = minimal_distance(plain, image, label, 1.0).median().item()
    first, second = (apgd(network, image, label, eps=eps, loss="dlr", steps=30) for network in (plain, scaled))
    assert torch.equal(first.success, second.success) and 0 < first.success.float().mean() < 1
    masked = apgd(scaled, image, label, eps=eps, steps=30)
    assert masked.success.sum() < first.success.sum() and masked.zero_gradient.any()
    undone = apgd(scaled, image, label, eps=eps, steps=30, temperature=1000.0)
    assert torch.equal(undone.success, apgd(plain, image, label, eps=eps, steps=30).success)


# What every attack promises


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_stays_in_ball_and_range(norm: Any, loss: Any) -> None:
    network = conv_net()
    image = batch(network)[0].round()  # on the borders
    result = apgd(network, image, prediction(network, image), eps=0.3, norm=norm, loss=loss, steps=20, stop_early=False)
    assert (result.linf if norm == "linf" else result.l2).max() <= 0.3 + 1e-6
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    assert (result.queries == 21).all()


def test_radius_zero_and_no_steps() -> None:
    network = Linear()
    image = grey(8)
    label = prediction(network, image)
    for norm in ("linf", "l2"):
        result = apgd(network, image, label, eps=0.0, norm=norm, steps=5)  # type: ignore[arg-type]
        assert torch.equal(result.adversarial, image) and not result.success.any()
    start = apgd(network, image, label, eps=EPS, steps=0)
    assert torch.equal(start.adversarial, random_start(image, torch.arange(8), 0, 0, EPS, "linf"))
    assert (start.queries == 1).all() and not start.zero_gradient.any()


def test_best_iterate_is_kept_and_further_starts_only_help() -> None:
    network = conv_net()
    image, label = batch(network)
    settings: dict[str, Any] = {"eps": 0.01, "steps": 10}
    full = apgd(network, image, label, stop_early=False, **settings)
    early = apgd(network, image, label, **settings)
    assert torch.equal(full.success, early.success) and 0 < full.success.float().mean() < 1
    assert (margin(network(full.adversarial), label) >= margin(network(early.adversarial), label)).all()
    more = apgd(network, image, label, restarts=3, **settings)
    assert (margin(network(more.adversarial), label) >= margin(network(early.adversarial), label)).all()
    assert torch.equal(more.queries[early.success], early.queries[early.success])
    assert (more.queries[~more.success] == 33).all()
    wrong = apgd(network, image, (label + 1) % 10, random_start=False)
    assert wrong.success.all() and not wrong.l2.any() and (wrong.queries == 1).all()


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_reaches_a_target(loss: Any) -> None:
    network = Linear()
    image = grey()
    label = prediction(network, image)
    target = (label + 3) % 10
    result = apgd(network, image, label, eps=0.3, loss=loss, target=target)
    assert torch.equal(prediction(network, result.adversarial), target) and result.success.all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_companions_in_the_batch_do_not_matter(norm: Any) -> None:  # N8
    network = Linear()
    image = grey()
    label, index = prediction(network, image), torch.arange(64) + 7
    settings: dict[str, Any] = {"eps": 0.01 if norm == "linf" else 0.05, "norm": norm, "restarts": 2, "steps": 20}
    together = apgd(network, image, label, index=index, **settings)
    chunks = apgd(network, image, label, index=index, batch_size=5, **settings)
    torch.testing.assert_close(chunks.adversarial, together.adversarial, rtol=0, atol=1e-6)
    for i in range(0, 64, 9):
        rows = slice(i, i + 1)
        alone = apgd(network, image[rows], label[rows], index=index[rows], **settings)
        torch.testing.assert_close(alone.adversarial, together.adversarial[rows], rtol=0, atol=1e-6)
        assert torch.equal(alone.success, together.success[rows])


def test_global_generators_are_left_alone_and_starts_follow_their_seed() -> None:
    network = Linear()
    image = grey(8)
    label = prediction(network, image)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    first, again, other = (apgd(network, image, label, eps=1e-3, steps=0, seed=seed).adversarial for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all()  # type: ignore[index]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off_and_restores_every_flag(context: Any) -> None:
    network = conv_net()
    image, label = batch(network)
    expected = apgd(network, image, label, steps=5)
    network.train()
    network[1].eval()  # a batch norm that its user has frozen
    network[0].weight.requires_grad_(False)
    flags = [m.training for m in network.modules()] + [p.requires_grad for p in network.parameters()]
    with context():
        inside = apgd(network, image.clone(), label.clone(), steps=5)  # clones made here are inference tensors
    assert torch.equal(inside.adversarial, expected.adversarial) and inside.linf.max() > 0.01
    assert [m.training for m in network.modules()] + [p.requires_grad for p in network.parameters()] == flags
    assert all(parameter.grad is None for parameter in network.parameters())


def test_empty_batch() -> None:
    assert apgd(Linear(), grey()[:0], torch.zeros(0, dtype=torch.int64)).success.shape == (0,)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": Linear(2), "label": torch.zeros(8, dtype=torch.int64), "loss": "dlr"}, r"2 classes .* needs 3"),
        (
            {
                "model": Linear(3),
                "label": torch.zeros(8, dtype=torch.int64),
                "loss": "dlr",
                "target": torch.ones(8).long(),
            },
            r"3 classes .* needs 4",
        ),
        ({"image": grey(8) * 255}, r"Images span \[.*\] and an attack needs pixels in \[0, 1\]"),
        ({"eps": 8.0}, r"eps=8.0 must lie in \[0, 1\].*write 8/255"),
    ],
)
def test_bad_input_gets_one_sentence(change: dict[str, Any], sentence: str) -> None:
    settings = {"model": Linear(), "image": grey(8), "label": torch.arange(8), **change}
    with pytest.raises(ValueError, match=sentence):
        apgd(settings.pop("model"), settings.pop("image"), settings.pop("label"), **settings)
