"""Defensive distillation: the loss (N15, N16 of its specification), its options, and what a checkpoint says."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch.optim import SGD, Adam
from toy import ToyImages, fit, toy_network, weights

from lit_kd.losses import kd_loss, soft_cross_entropy
from lit_kd.methods import Classifier, DefensiveDistill, Distill

GENERATOR = torch.Generator().manual_seed(0)
STUDENT = 30 * torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
TEACHER = 30 * torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
T = 20.0


def test_loss_of_equal_logits_is_the_entropy_and_its_gradient_zero() -> None:
    logits = TEACHER.clone().requires_grad_()
    loss = soft_cross_entropy(logits, TEACHER, T)
    q = (TEACHER / T).softmax(1)
    torch.testing.assert_close(loss, -(q * q.log()).sum(1).mean(), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.abs().max() < 1e-15


def test_gradient_is_the_difference_of_probabilities_over_t_n() -> None:
    logits = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, TEACHER, T), logits)
    torch.testing.assert_close(gradient, ((STUDENT / T).softmax(1) - (TEACHER / T).softmax(1)) / (T * 6))


def test_loss_is_kd_over_t_squared_plus_entropy() -> None:
    entropy = soft_cross_entropy(TEACHER, TEACHER, T, reduction="none")
    kd = kd_loss(STUDENT, TEACHER, T, reduction="none") / T**2
    torch.testing.assert_close(soft_cross_entropy(STUDENT, TEACHER, T, reduction="none"), kd + entropy)


def test_prediction_does_not_depend_on_the_temperature() -> None:
    assert torch.equal(STUDENT.softmax(1).argmax(1), (STUDENT / T).softmax(1).argmax(1))


def one_step(**settings: object) -> torch.Tensor:
    """The change of a student's weights by a step of SGD with rate 1."""
    torch.manual_seed(0)
    teacher, student = toy_network(6), toy_network()
    before = weights(student)
    module = DefensiveDistill(student, teacher, 3, temperature=T, optimizer=lambda p: SGD(p, lr=1.0), **settings)
    fit(module, max_steps=1)
    return weights(student) - before


def test_options_scale_and_mix_the_terms() -> None:
    soft, squared, hard = one_step(), one_step(t_squared=True), one_step(hard_weight=1.0)
    torch.testing.assert_close(squared, T**2 * soft, rtol=1e-3, atol=1e-5)
    mixed = one_step(hard_weight=0.3)
    torch.testing.assert_close(mixed, 0.7 * soft + 0.3 * hard, rtol=1e-3, atol=1e-6)
    assert (soft - hard).abs().max() > 1e-4


def test_hard_label_alone_equals_a_classifier_at_that_temperature() -> None:
    torch.manual_seed(0)
    toy_network(6)
    student = toy_network()
    before = weights(student)
    fit(Classifier(student, 3, temperature=T, optimizer=lambda p: SGD(p, lr=1.0)), max_steps=1)
    torch.testing.assert_close(weights(student) - before, one_step(hard_weight=1.0))


def test_logits_grow_with_the_temperature_and_the_deployed_network_gives_them_raw() -> None:
    gaps = {}
    for temperature in (1.0, 20.0):
        torch.manual_seed(0)
        teacher, student = toy_network(8), toy_network(8)
        adam = {"optimizer": lambda p: Adam(p, lr=0.05), "max_epochs": 30}
        fit(Classifier(teacher, 3, temperature, optimizer=adam["optimizer"]), max_epochs=30)
        module = DefensiveDistill(student, teacher, 3, temperature, optimizer=adam["optimizer"])
        trainer = fit(module, max_epochs=30)
        assert trainer.test(module, ToyImages(), verbose=False)[0]["test/acc"] > 0.9
        image = ToyImages().load("test").pixels / 255
        assert torch.equal(module.eval()(image), student.eval()(image))
        top = student(image).topk(2).values
        gaps[temperature] = (top[:, 0] - top[:, 1]).mean().item()
    assert gaps[20.0] > 5 * gaps[1.0]


def test_temperature_is_in_the_checkpoint_and_the_teacher_is_not(tmp_path: Path) -> None:
    student, teacher = toy_network(), toy_network(6)
    trainer = fit(DefensiveDistill(student, teacher, 3, temperature=50.0))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["temperature"] == 50.0
    assert not any("teacher" in key for key in saved["state_dict"])
    again = DefensiveDistill.load_from_checkpoint(tmp_path / "last.ckpt", student=toy_network(), teacher=teacher)
    assert again.temperature == 50.0
    image = torch.rand(4, 3, 8, 8)
    assert torch.equal(again.student.eval()(image), student.eval()(image))


def test_published_recipe_is_the_default() -> None:
    module: Distill = DefensiveDistill(toy_network(), toy_network(), 3)
    trainer = fit(module, max_epochs=11)
    group = trainer.optimizers[0].param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.005, 0.9, 0)


def test_loss_in_half_precision_is_computed_in_float32() -> None:
    half = soft_cross_entropy(STUDENT.bfloat16(), TEACHER.bfloat16(), T)
    assert half.dtype == torch.float32
    expected = F.cross_entropy(STUDENT.bfloat16().float() / T, (TEACHER.bfloat16().float() / T).softmax(1))
    torch.testing.assert_close(half, expected)
