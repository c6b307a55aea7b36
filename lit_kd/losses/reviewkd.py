"""ReviewKD: fuse the student's stages from deep to shallow, and compare each with the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_kd.checks import check_whole
from lit_kd.losses.features import hierarchical_context_loss

CACHED_SAMPLES = 8  # fused together on a CPU: 2 MB a temporary at 64 x 32 x 32, where a batch's would leave the cache


class AttentionFusion(nn.Module):
    """Attention based fusion (ABF) of one student stage with what the deeper stages passed on."""

    def __init__(self, student_channels: int, mid_channels: int, teacher_channels: int, fuse: bool) -> None:
        """Build the convolutions.

        Args:
            student_channels: channels of the student's map.
            mid_channels: channels that are passed from stage to stage.
            teacher_channels: channels of the output.
            fuse: False for the deepest stage, which has nothing to fuse with.
        """
        super().__init__()
        reduce = nn.Conv2d(student_channels, mid_channels, 1, bias=False)
        expand = nn.Conv2d(mid_channels, teacher_channels, 3, padding=1, bias=False)
        for convolution in (reduce, expand):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.reduce = nn.Sequential(reduce, nn.BatchNorm2d(mid_channels))
        self.attention = nn.Conv2d(2 * mid_channels, 2, 1) if fuse else None
        self.expand = nn.Sequential(expand, nn.BatchNorm2d(teacher_channels))

    def forward(self, feature: Tensor, residual: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Output (B, C_t, *size) for the loss, and the residual (B, mid, *size) for the next shallower stage.

        Args:
            feature: (B, C_s, H, W), the student's map.
            residual: (B, mid, H', W') of the next deeper stage; None if there is none.
            size: height and width of the teacher's map.
        """
        on_cpu = feature.device.type == "cpu"
        if on_cpu:  # these convolutions are faster there in this format, whatever the network's own
            feature = feature.contiguous(memory_format=torch.channels_last)
        fused = self.reduce(feature)
        if self.attention is not None and residual is not None:
            part = CACHED_SAMPLES if on_cpu else len(fused)
            pairs = zip(fused.split(part), residual.split(part), strict=True)
            fused = torch.cat([_fuse(self.attention, own, deeper) for own, deeper in pairs])
        fused = _resize(fused, size)
        return self.expand(fused), fused


class ReviewFusion(nn.Module):
    """The loss of ReviewKD (Chen et al., arXiv:2104.09044), composed as in mdistiller.

    Example:
        >>> fusion = ReviewFusion([8, 16], [12, 24])
        >>> student = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 1, 1)]
        >>> fusion(student, [torch.randn(2, 12, 8, 8), torch.randn(2, 24, 1, 1)]).shape
        torch.Size([])
    """

    def __init__(
        self, student_channels: Sequence[int], teacher_channels: Sequence[int], max_mid_channels: int = 512
    ) -> None:
        """Build one fusion a stage.

        Args:
            student_channels: channels of the student's stages, shallow to deep.
            teacher_channels: channels of the teacher's stages, shallow to deep, as many.
            max_mid_channels: bound of the width that is passed from stage to stage, otherwise that of the
                student's deepest stage.

        Raises:
            ValueError: the numbers of stages differ.
        """
        super().__init__()
        if len(student_channels) != len(teacher_channels) or not student_channels:
            raise ValueError(
                "student_channels and teacher_channels must name as many stages, "
                f"got {len(student_channels)} and {len(teacher_channels)}"
            )
        check_whole(max_mid_channels=max_mid_channels)
        mid_channels = min(max_mid_channels, student_channels[-1])
        deepest = len(student_channels) - 1
        self.stages = nn.ModuleList(
            AttentionFusion(student, mid_channels, teacher, fuse=stage < deepest)
            for stage, (student, teacher) in enumerate(zip(student_channels, teacher_channels, strict=True))
        )

    def forward(self, student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
        """Hierarchical context loss of the fused stages.

        Args:
            student_features: list of (B, C_s, H, W), shallow to deep; an embedding is (B, C_s, 1, 1).
            teacher_features: as many (B, C_t, H', W').

        Raises:
            ValueError: there are not as many maps as stages.
        """
        if not len(student_features) == len(teacher_features) == len(self.stages):
            raise ValueError(
                f"ReviewFusion has {len(self.stages)} stages, "
                f"got {len(student_features)} student and {len(teacher_features)} teacher maps"
            )
        residual, outputs = None, []
        for stage, student, teacher in reversed(
            list(zip(self.stages, student_features, teacher_features, strict=True))
        ):
            output, residual = stage(student, residual, teacher.shape[2:])
            outputs.append(output)
        return hierarchical_context_loss(outputs[::-1], teacher_features)


def _resize(feature: Tensor, size: torch.Size) -> Tensor:
    return feature if feature.shape[2:] == size else F.interpolate(feature, size, mode="nearest")


def _fuse(attention: nn.Conv2d, own: Tensor, deeper: Tensor) -> Tensor:
    # A 1x1 convolution of two joined maps is the sum of one over each: nothing to join or to enlarge before
    own_kernel, deeper_kernel = attention.weight.chunk(2, dim=1)
    size = own.shape[2:]
    scores = F.conv2d(own, own_kernel, attention.bias) + _resize(F.conv2d(deeper, deeper_kernel), size)
    weights = scores.sigmoid()
    return own * weights[:, :1] + _resize(deeper, size) * weights[:, 1:]
