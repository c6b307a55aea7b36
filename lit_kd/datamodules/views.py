"""The views of OBoW: the teacher's whole image, the student's crops and patches, as whole-batch operations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_kd.checks import check_list, check_share, check_whole
from lit_kd.datamodules.augment import counter_uniform
from lit_kd.datamodules.colour import grayscale, jitter
from lit_kd.datamodules.resampling import ATTEMPTS, blur_taps, filter_images, resize_taps, resized_boxes, taps_needed

GRID = 3  # patches a side
# Columns of the uniforms (M, DRAWS) of one random resized crop and its colours.
BOX = slice(0, 2 * ATTEMPTS + 2)
FLIP, JITTER, ORDER, STRENGTHS, GRAY, BLUR, SIGMA = 22, 23, 24, slice(25, 29), 29, 30, 31
DRAWS = 32
CPU_BLOCK = 2**19  # numbers of a result that a CPU works on at once: 2^17 is 1.5 times slower, 2^23 up to 1.4


@dataclass(frozen=True, kw_only=True)
class MultiCropViews:
    """A view for the teacher and, for the student, a group of crops and a group of patches of every image.

    Gidaris et al., arXiv:2012.11552; the defaults are the sizes of the official code (valeoai/obow) for ImageNet:

        teacher   resize the short side to 256, centre crop of 224, flip
        crops     2 random resized crops of 160, area 0.08-0.6; jitter, grey, blur, flip
        patches   a random resized crop of 256, area 0.6-1; jitter, grey, flip; 5 of its 3 x 3 overlapping patches

    Patch (i, j) of size p in an image of P starts at row i * g + U{0..m}, column j * g + U{0..m}, with max_offset m
    and g = (P - p - m) // 2. The patches of an image share crop, flip and colours and are drawn without replacement.
    Pixels lie in [0, 1]: the network normalises. `num_crops=1, num_patches=0` is the vanilla version, `num_crops=0`
    the official `only_patches`.

    Every draw is a hash of (seed, visit, index, slot): the views of a sample do not depend on its batch, rank, worker
    or on a resume; to the last bit on one CPU thread, to rounding on several or on a GPU. Draws are distributed as
    torchvision's, with its ten attempts at a box and its random order of the four colour changes, and operations equal
    torchvision's on float images. The official pipeline is on PIL images, which are rounded to 8 bits after each change
    and blurred by box filters: at its borders PIL repeats the edge where we reflect, and a sigma below 0.5 blurs more.

    Args:
        teacher_resize: Short side to which the teacher's image is resized, pixels.
        teacher_size: Of the centre crop from it, pixels.
        crop_size: Of the crops, pixels.
        num_crops: Crops an image; 0: no such group.
        crop_scale: Area of a crop as a share of the image, lowest and highest.
        patch_image_size: Of the crop that is cut into patches, P, pixels.
        patch_size: Of the patches, p, pixels.
        num_patches: Patches an image, of 9; 0: no such group.
        patch_scale: Area of the crop that is cut into patches as a share of the image, lowest and highest.
        max_offset: Largest random offset of a patch, m, pixels.
        ratio: Width over height of the random resized crops, lowest and highest.
        color_jitter: Brightness, contrast and saturation: factors from [max(0, 1 - x), 1 + x]; hue: turns from
            [-x, x].
        jitter_probability: Of these four together.
        gray_probability: Of losing all colour.
        blur_probability: Of the blur of a crop.
        blur_sigma: Of its Gaussian, lowest and highest, pixels.
        flip_probability: Of horizontal flips; 0 for images such as digits.

    Raises:
        ValueError: If an argument is out of range, the patches do not fit, or both groups are empty; in a call, if
            images do not have three channels.
    """

    teacher_resize: int = 256
    teacher_size: int = 224
    crop_size: int = 160
    num_crops: int = 2
    crop_scale: tuple[float, float] = (0.08, 0.6)
    patch_image_size: int = 256
    patch_size: int = 96
    num_patches: int = 5
    patch_scale: tuple[float, float] = (0.6, 1.0)
    max_offset: int = 24
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip_probability: float = 0.5

    @classmethod
    def cifar(cls, **changes: Any) -> MultiCropViews:
        """For 32x32 images; ours, as the authors publish none: official sizes by 32/224, patches cut from 32, no blur.

        The official blur, scaled by 24/160, is at most 0.3 pixels wide.
        """
        sizes = {"teacher_resize": 32, "teacher_size": 32, "crop_size": 24, "patch_image_size": 32, "patch_size": 14}
        return cls(**{**sizes, "max_offset": 2, "blur_probability": 0.0, **changes})

    @classmethod
    def tiny_imagenet(cls, **changes: Any) -> MultiCropViews:
        """For 64x64 images; ours, as the authors publish none: official sizes by 64/224, blur by 48/160."""
        sizes = {"teacher_resize": 64, "teacher_size": 64, "crop_size": 48, "patch_image_size": 64, "patch_size": 28}
        return cls(**{**sizes, "max_offset": 4, "blur_sigma": (0.1, 0.6), **changes})

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_whole(teacher_size=self.teacher_size, crop_size=self.crop_size, patch_size=self.patch_size)
        check_whole(teacher_resize=self.teacher_resize, patch_image_size=self.patch_image_size)
        check_whole(0, num_crops=self.num_crops, num_patches=self.num_patches, max_offset=self.max_offset)
        if self.teacher_size > self.teacher_resize:
            raise ValueError(
                f"teacher_size={self.teacher_size} must be at most teacher_resize={self.teacher_resize}, of which it "
                "is cut."
            )
        if self.num_crops == self.num_patches == 0:
            raise ValueError("num_crops=0 and num_patches=0 leave the student nothing to see: raise one of them.")
        if self.num_patches > GRID**2:
            raise ValueError(f"num_patches={self.num_patches} must be at most {GRID**2}, the patches of the grid.")
        if self.num_patches and self.patch_size + self.max_offset > self.patch_image_size:
            raise ValueError(
                f"patch_size={self.patch_size} and max_offset={self.max_offset} do not fit into "
                f"patch_image_size={self.patch_image_size}: their sum must not be larger."
            )
        for name, top in (("crop_scale", 1), ("patch_scale", 1), ("ratio", torch.inf), ("blur_sigma", torch.inf)):
            check_list(**{name: getattr(self, name)})
            low, high = getattr(self, name)
            if not 0 < low <= high <= top:
                raise ValueError(f"{name}=({low}, {high}) must satisfy 0 < low <= high <= {top}.")
        for name in ("jitter_probability", "gray_probability", "blur_probability", "flip_probability"):
            check_share(**{name: getattr(self, name)})
        check_list(color_jitter=self.color_jitter)
        if len(self.color_jitter) != 4 or min(self.color_jitter) < 0 or self.color_jitter[3] > 0.5:
            raise ValueError(
                f"color_jitter={tuple(self.color_jitter)} must be four numbers from 0 on, the last at most 0.5."
            )

    @torch.no_grad()
    def __call__(
        self, image: Tensor, visit: Tensor, index: Tensor, seed: int, size: Tensor | None = None
    ) -> dict[str, Any]:
        """Make all views of a batch, on its device.

        Args:
            image: (B, 3, H, W), uint8 or float in [0, 1].
            visit: How often each sample was drawn before, int64 (B,).
            index: Position of each sample in its set, int64 (B,).
            seed: Of all draws.
            size: Height and width of each image where it does not fill (H, W) but stands in its upper left corner,
                int64 (B, 2).

        Returns:
            `image`, the teacher's view, float32 (B, 3, S, S); `crops`, a list of the groups, (B * n, 3, s, s) each:
            crops, then patches. Row b * n + j belongs to image b.
        """
        _check(image)
        uniforms = counter_uniform(seed, visit, index, 1 + DRAWS * (1 + self.num_crops) + 3 * GRID**2)
        sizes = _sizes(image, size)
        shapes = [(self.teacher_size, 1), (self.crop_size, self.num_crops), (self.patch_size, self.num_patches)]
        like = torch.empty(0, dtype=torch.float32, device=image.device)
        views = [like.new_empty(len(image) * count, 3, side, side) for side, count in shapes if count]
        block = max(1, CPU_BLOCK // self._largest) if image.device.type == "cpu" else len(image)
        for start in range(0, len(image), block):
            part = slice(start, start + block)
            for view, made in zip(views, self._views(image[part], uniforms[part], sizes[part]), strict=True):
                each = len(view) // len(image)
                torch.clamp(made, 0, 1, out=view[start * each : start * each + len(made)])
        return {"image": views[0], "crops": views[1:]}

    @torch.no_grad()
    def teacher(self, image: Tensor, size: Tensor | None = None, flip: Tensor | None = None) -> Tensor:
        """Resize the short side, cut the centre and, where `flip` (bool, (B,)) says so, flip: (B, 3, S, S)."""
        _check(image)
        return self._teacher(_unit(image), _sizes(image, size), flip)

    @property
    def _largest(self) -> int:
        """Numbers that the largest result of an image holds."""
        return 3 * max(self.num_crops * self.crop_size**2, self.patch_image_size**2, self.teacher_size**2)

    def _views(self, image: Tensor, uniforms: Tensor, size: Tensor) -> list[Tensor]:
        image = _unit(image)
        # The crops come last: another number of them leaves all other views as they are.
        flip, patch_image, patches, crops = uniforms.split([1, DRAWS, 3 * GRID**2, DRAWS * self.num_crops], dim=1)
        views = [self._teacher(image, size, flip[:, 0] < self.flip_probability)]
        if self.num_crops:
            crops = crops.reshape(-1, DRAWS)  # (B * n, DRAWS)
            views.append(self._blur(self._crops(image, size, crops, self.crop_size, self.crop_scale), crops))
        if self.num_patches:
            whole = self._crops(image, size, patch_image, self.patch_image_size, self.patch_scale)
            views.append(self._patches(whole, patches))
        return views

    def _teacher(self, image: Tensor, size: Tensor, flip: Tensor | None) -> Tensor:
        short = size.amin(1, keepdim=True)
        resized = self.teacher_resize * size // short  # (B, 2)
        first = ((resized - self.teacher_size) / 2).round()
        taps = taps_needed(max(image.shape[2:]), self.teacher_resize)
        zero = torch.zeros_like(size[:, 0])
        vertical, horizontal = (
            resize_taps(zero, size[:, axis], resized[:, axis], first[:, axis], self.teacher_size, taps, mirror)
            for axis, mirror in ((0, None), (1, flip))
        )
        return filter_images(image, torch.arange(len(image), device=image.device), vertical, horizontal)

    def _crops(self, image: Tensor, size: Tensor, uniforms: Tensor, output: int, scale: tuple[float, float]) -> Tensor:
        """Random resized crops, jittered and grey by their chance, (M, 3, output, output); M a multiple of B."""
        each = len(uniforms) // len(image)
        source = torch.arange(len(uniforms), device=image.device) // each
        height, width = size[source].unbind(1)
        top, left, tall, wide = resized_boxes(uniforms[:, BOX], height, width, scale, self.ratio)
        ends, zero = torch.full_like(top, output), torch.zeros_like(top)
        flip = uniforms[:, FLIP] < self.flip_probability
        vertical = resize_taps(top, tall, ends, zero, output, taps_needed(image.shape[2], output))
        horizontal = resize_taps(left, wide, ends, zero, output, taps_needed(image.shape[3], output), flip)
        crops = filter_images(image, source, vertical, horizontal)
        if self.jitter_probability and any(self.color_jitter):
            applied = uniforms[:, JITTER] < self.jitter_probability
            crops = jitter(crops, applied, (uniforms[:, ORDER] * 24).long(), self._strengths(uniforms[:, STRENGTHS]))
        (gray,) = (uniforms[:, GRAY] < self.gray_probability).nonzero(as_tuple=True)
        if len(gray):
            crops[gray] = grayscale(crops[gray]).expand(-1, 3, -1, -1)
        return crops

    def _strengths(self, uniforms: Tensor) -> Tensor:
        spread = uniforms.new_tensor(self.color_jitter)
        centre = uniforms.new_tensor([1.0, 1.0, 1.0, 0.0])
        low = torch.cat([(1 - spread[:3]).clamp(min=0), -spread[3:]])
        return low + uniforms * (centre + spread - low)

    def _blur(self, crops: Tensor, uniforms: Tensor) -> Tensor:
        (blurred,) = (uniforms[:, BLUR] < self.blur_probability).nonzero(as_tuple=True)
        if len(blurred):
            low, high = self.blur_sigma
            sigma = low + uniforms[blurred, SIGMA] * (high - low)
            taps = blur_taps(sigma, self.crop_size, radius=min(math.ceil(4 * high), self.crop_size - 1))
            crops[blurred] = filter_images(crops, blurred, taps, taps)
        return crops

    def _patches(self, whole: Tensor, uniforms: Tensor) -> Tensor:
        """Cut `num_patches` of the grid out of (B, 3, P, P), in random order: (B * n, 3, p, p)."""
        cells = uniforms[:, : GRID**2].argsort(stable=True)[:, : self.num_patches]  # (B, n)
        offsets = (uniforms[:, GRID**2 :] * (self.max_offset + 1)).long().view(len(whole), 2, GRID**2)
        step = (self.patch_image_size - self.patch_size - self.max_offset) // (GRID - 1)
        top = cells // GRID * step + offsets[:, 0].gather(1, cells)
        left = cells % GRID * step + offsets[:, 1].gather(1, cells)
        windows = whole.unfold(2, self.patch_size, 1).unfold(3, self.patch_size, 1)
        return windows[torch.arange(len(whole), device=whole.device)[:, None], :, top, left].flatten(0, 1)


def _check(image: Tensor) -> None:
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(
            f"Views need images (B, 3, H, W), not {tuple(image.shape)}: colours change, so repeat a grey image three "
            "times."
        )


def _unit(image: Tensor) -> Tensor:
    return (image / 255 if image.dtype == torch.uint8 else image.float()).contiguous()


def _sizes(image: Tensor, size: Tensor | None) -> Tensor:
    if size is None:
        size = torch.tensor(image.shape[2:], device=image.device).expand(len(image), 2)
    return size
