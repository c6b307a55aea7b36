"""Carlini and Wagner's attack against closed forms (N4 to N8 of the specification) and in its corners."""

import pytest
import torch
from linear import Linear, grey, minimal_distance
from torch import Tensor, nn

from lit_kd.attacks import carlini_wagner
from lit_kd.attacks.objectives import margin


def batch(network: nn.Module, count: int = 64, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    image = grey(count, dtype)
    with torch.no_grad():
        return image, network(image).argmax(1)


def conv_net() -> nn.Sequential:
    """He-normal weights and no biases: every class is somewhere in [0, 1]."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()  # fmt: skip
    for name, parameter in network.named_parameters():
        torch.nn.init.zeros_(parameter) if "bias" in name else torch.nn.init.kaiming_normal_(parameter)
    return network


def ratios(network: Linear, image: Tensor, label: Tensor, l2: Tensor, kappa: float = 0.0) -> Tensor:
    """Distance found over the smallest possible one, where that is large enough to be compared."""
    logits, weight = network(image).detach().double(), network.scale * network.weight.detach().double()
    gap = logits.gather(1, label[:, None]) - logits + kappa
    distance = gap / (weight[label][:, None] - weight[None]).norm(dim=2)
    smallest = distance.scatter(1, label[:, None], torch.inf).amin(1)
    return (l2.double() / smallest)[smallest >= 5e-3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 10])
def test_distance_is_the_closed_form(classes: int, dtype: torch.dtype) -> None:  # N4
    network = Linear(classes)
    image, label = batch(network, dtype=dtype)
    result = carlini_wagner(network, image, label)
    assert result.success.all() and result.adversarial.dtype == dtype
    ratio = ratios(network, image, label, result.l2)
    assert len(ratio) > 40
    assert ratio.min() >= 1 - 1e-4 and ratio.median() <= 1.02 and ratio.max() <= 1.10
    if classes == 2:  # the fixture's own formula says the same
        far = minimal_distance(network, image, label, 2.0) >= 5e-3
        torch.testing.assert_close(
            ratio, (result.l2.double() / minimal_distance(network, image, label, 2.0))[far], rtol=1e-9, atol=0
        )


@pytest.mark.parametrize("classes", [2, 10])
def test_confidence_is_honoured(classes: int) -> None:  # N5
    network = Linear(classes)
    image, label = batch(network)
    result = carlini_wagner(network, image, label, confidence=1.0)
    assert result.success.all()
    assert margin(network(result.adversarial), label).min() >= 1 - 1e-4
    ratio = ratios(network, image, label, result.l2, kappa=1.0)
    assert ratio.min() >= 1 - 1e-4 and ratio.median() <= 1.02


def test_a_misclassified_image_without_the_confidence_is_no_success() -> None:
    network = Linear()
    image, label = batch(network)
    wrong = (label + 1) % 10
    unreachable = carlini_wagner(network, image, wrong, confidence=1e4)
    assert not unreachable.success.any() and not unreachable.l2.any()
    reached = carlini_wagner(network, image, wrong, confidence=1.0)
    assert reached.success.all() and margin(network(reached.adversarial), wrong).min() >= 1


def test_a_search_that_gains_nothing_ends() -> None:
    network = Linear()
    image, label = batch(network)
    assert carlini_wagner(network, image, label).queries.double().mean() < 130


def test_shift_of_the_logits_does_not_matter() -> None:  # N6
    image, label = batch(Linear(), dtype=torch.float64)
    expected = carlini_wagner(Linear(), image, label)
    for shift in (-1000.0, 1000.0):
        result = carlini_wagner(Linear(shift=shift), image, label)
        assert torch.equal(result.success, expected.success)
        torch.testing.assert_close(result.l2, expected.l2, rtol=0.01, atol=0)


def test_shift_in_float32_does_not_matter_for_success() -> None:
    image, label = batch(Linear())
    for shift in (-1000.0, 1000.0):
        network = Linear(shift=shift)
        assert carlini_wagner(network, image, network(image).argmax(1)).success.all()


@pytest.mark.parametrize("scale", [1e-3, 1000.0])
def test_scale_of_the_logits_does_not_matter(scale: float) -> None:
    image, label = batch(Linear())
    expected = carlini_wagner(Linear(), image, label)
    result = carlini_wagner(Linear(scale=scale), image, label)
    assert result.success.all()
    torch.testing.assert_close(result.l2, expected.l2, rtol=0.02, atol=1e-5)


def test_pixels_at_zero_and_one_move() -> None:  # N7
    network = conv_net()
    image = torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(2)).round()
    label = network(image).argmax(1)
    result = carlini_wagner(network, image, label)
    assert result.success.all() and (result.linf > 0).all()
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1


def test_companions_in_the_batch_do_not_matter() -> None:  # N8
    network = Linear()
    image, label = batch(network)
    together = carlini_wagner(network, image, label)
    chunks = carlini_wagner(network, image, label, batch_size=7)
    torch.testing.assert_close(chunks.adversarial, together.adversarial, rtol=0, atol=1e-5)
    for i in range(0, 64, 9):
        alone = carlini_wagner(network, image[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(alone.adversarial, together.adversarial[i : i + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", [Linear(), conv_net()], ids=["linear", "conv"])
def test_targets_are_reached(network: nn.Module) -> None:
    image, label = batch(network, 32)
    target = (label + 1 + torch.arange(32) % 9) % 10
    result = carlini_wagner(network, image, label, target=target)
    assert result.success.all()
    assert torch.equal(network(result.adversarial).argmax(1), target)
    untargeted = carlini_wagner(network, image, label)
    assert (untargeted.l2 <= 1.02 * result.l2).all()


def test_misclassified_images_cost_no_steps() -> None:
    network = Linear()
    image, label = batch(network)
    wrong = torch.where(torch.arange(64) % 2 == 0, (label + 1) % 10, label)
    result = carlini_wagner(network, image, wrong)
    assert not result.l2[::2].any() and (result.queries[::2] == 2).all() and result.success.all()
    assert (result.l2[1::2] > 0).all() and (result.queries[1::2] > 2).all()


class Deaf(nn.Module):
    """Always says class 3, whatever the image."""

    def forward(self, image: Tensor) -> Tensor:
        return 0 * image.flatten(1)[:, :10] + 2.0 * torch.nn.functional.one_hot(torch.tensor(3), 10)


def test_failure_returns_the_clean_image_and_says_so() -> None:
    image = grey()
    result = carlini_wagner(Deaf(), image, torch.full((64,), 3))
    assert not result.success.any() and torch.equal(result.adversarial, image) and result.zero_gradient.all()
    network = Linear()
    label = network(image).argmax(1)
    weak = carlini_wagner(network, image, label, steps=1, search_steps=1, lr=1e-9)
    assert not weak.success.any() and torch.equal(weak.adversarial, image) and not weak.l2.any()


def test_more_effort_is_not_worse() -> None:
    network = conv_net()
    image, label = batch(network, 32)
    quick, long = (
        carlini_wagner(network, image, label),
        carlini_wagner(network, image, label, steps=150, stop_early=False),
    )
    assert quick.success.all() and long.success.all()
    assert (quick.l2 / long.l2).median() <= 1.02
    assert quick.queries.double().mean() < 0.4 * long.queries.double().mean()


def test_flags_come_back_and_inference_mode_works() -> None:
    network = conv_net().train()
    image, label = batch(network, 8)
    expected = carlini_wagner(network, image, label)
    with torch.inference_mode():
        inside = carlini_wagner(network, image.clone(), label.clone())
    assert torch.equal(inside.adversarial, expected.adversarial) and inside.success.all()
    assert not inside.adversarial.is_inference()
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
