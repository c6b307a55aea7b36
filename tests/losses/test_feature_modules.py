"""Composition of ReviewKD and VID; their numbers are in test_golden_losses."""

import pytest
import torch
import torch.nn.functional as F

from lit_kd.losses import ReviewFusion, VIDRegressor, hierarchical_context_loss

STUDENT, TEACHER = (8, 12, 16), (10, 20, 24)


def maps(channels: tuple[int, ...], sizes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(2, c, size, size) for c, size in zip(channels, sizes, strict=True)]


def test_fuses_from_deep_to_shallow() -> None:
    fusion, student, teacher = (
        ReviewFusion(STUDENT, TEACHER),
        maps(STUDENT, (8, 4, 1)),
        maps(TEACHER, (8, 4, 1)),
    )
    deep, residual = fusion.stages[2](student[2], None, torch.Size([1, 1]))
    middle, residual = fusion.stages[1](student[1], residual, torch.Size([4, 4]))
    shallow, residual = fusion.stages[0](student[0], residual, torch.Size([8, 8]))
    assert residual.shape == (2, 16, 8, 8)
    expected = hierarchical_context_loss([shallow, middle, deep], teacher)
    torch.testing.assert_close(fusion(student, teacher), expected)


def test_every_parameter_is_trained_whatever_the_sizes() -> None:
    fusion = ReviewFusion(STUDENT, TEACHER, max_mid_channels=6)
    fusion(maps(STUDENT, (9, 4, 1)), maps(TEACHER, (7, 8, 2))).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in fusion.parameters())


def test_equal_resolution_is_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "interpolate", lambda *_, **__: pytest.fail("interpolated"))
    ReviewFusion(STUDENT, TEACHER)(maps(STUDENT, (4, 4, 4)), maps(TEACHER, (4, 4, 4)))


def test_errors() -> None:
    with pytest.raises(ValueError, match="must name as many stages, got 3 and 2"):
        ReviewFusion(STUDENT, TEACHER[:2])
    with pytest.raises(ValueError, match="has 3 stages, got 3 student and 2 teacher maps"):
        ReviewFusion(STUDENT, TEACHER)(maps(STUDENT, (4, 4, 4)), maps(TEACHER[:2], (4, 4)))


@pytest.mark.parametrize(("student_size", "teacher_size"), [(8, 4), (4, 8), (4, 4)])
def test_vid_regressor_pools_the_larger_map(student_size: int, teacher_size: int) -> None:
    regressor = VIDRegressor(3, 5)
    student, teacher = (
        torch.randn(2, 3, student_size, student_size),
        torch.randn(2, 5, teacher_size, teacher_size),
    )
    pooled = F.adaptive_avg_pool2d(student, 4), F.adaptive_avg_pool2d(teacher, 4)
    loss = regressor(student, teacher)
    torch.testing.assert_close(loss, regressor(*pooled))
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in regressor.parameters())
