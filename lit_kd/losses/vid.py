"""Variational information distillation: the loss and its regressor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_kd.checks import check_positive, check_whole
from lit_kd.losses.features import pool_to_smaller
from lit_kd.losses.shared import Reduction, check_same_shape, full_precision, reduce

MIN_VARIANCE = 1e-5


@full_precision
def vid_loss(
    predicted_mean: Tensor, log_scale: Tensor, teacher_feature: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Negative Gaussian log likelihood of the teacher's feature (Ahn et al., arXiv:1904.05835).

    .. math:: mean \, \tfrac12 [(t - \mu)^2 / \sigma_c^2 + \ln \sigma_c^2], \quad
        \sigma_c^2 = softplus(\rho_c) + 10^{-5}

    In nats, less the constant ln(2 pi) / 2; the mean runs over all elements, and may be negative.

    Args:
        predicted_mean: mu, (B, C, H, W).
        log_scale: rho, (C,).
        teacher_feature: t, (B, C, H, W).
        reduction: "mean" over the batch, or "none" for (B,).

    Raises:
        ValueError: the shapes of mean and feature differ, or log_scale isn't (C,).

    Example:
        >>> vid_loss(torch.zeros(2, 3, 4, 4), torch.zeros(3), torch.ones(2, 3, 4, 4))
        tensor(0.5381)
    """
    check_same_shape(predicted_mean, teacher_feature)
    channels = teacher_feature.shape[1]
    if log_scale.shape != (channels,):
        raise ValueError(f"log_scale must be ({channels},), one a teacher channel, got {tuple(log_scale.shape)}")
    variance = (F.softplus(log_scale) + MIN_VARIANCE).view(-1, 1, 1)
    likelihood = (teacher_feature - predicted_mean).square() / variance + variance.log()
    return reduce(0.5 * likelihood.flatten(1).mean(1), reduction)


class VIDRegressor(nn.Module):
    """Predicts the teacher's map from the student's, and returns the :func:`vid_loss` of the prediction.

    Three 1x1 convolutions without bias, as wide as the teacher, with ReLU between. The larger of two maps is
    average pooled to the smaller before the convolutions.

    Example:
        >>> regressor = VIDRegressor(16, 32)
        >>> regressor(torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)).shape
        torch.Size([])
    """

    def __init__(self, student_channels: int, teacher_channels: int, initial_variance: float = 5.0) -> None:
        """Build the convolutions.

        Args:
            student_channels: channels of the student's map.
            teacher_channels: channels of the teacher's map.
            initial_variance: variance of each channel before training.
        """
        super().__init__()
        check_whole(student_channels=student_channels, teacher_channels=teacher_channels)
        check_positive(initial_variance=initial_variance)
        self.mean = nn.Sequential(
            nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        )
        inverse_softplus = math.log(math.expm1(initial_variance - MIN_VARIANCE))
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), inverse_softplus))

    def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        """Loss of maps (B, C_s, H, W) and (B, C_t, H', W')."""
        student_feature, teacher_feature = pool_to_smaller(student_feature, teacher_feature)
        return vid_loss(self.mean(student_feature), self.log_scale, teacher_feature)
