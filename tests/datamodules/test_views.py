"""The views of OBoW: against torchvision image by image, their draws, and what a data module makes of them."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from scipy.stats import chisquare, kstest
from test_image_data_module import Recorder, ToyDataModule, ready, trainer
from tiny_files import class_folders, encode, tiny_imagenet, write
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from lit_kd.datamodules import (
    CIFAR10DataModule,
    DigitsDataModule,
    ImageDataModule,
    ImageFolderDataModule,
    MultiCropViews,
    TinyImageNetDataModule,
)
from lit_kd.datamodules.augment import counter_uniform
from lit_kd.datamodules.decoding import decode_image
from lit_kd.datamodules.resampling import resized_boxes
from lit_kd.datamodules.views import BLUR, BOX, DRAWS, FLIP, GRAY, JITTER, ORDER, SIGMA, STRENGTHS

SMALL: dict[str, Any] = {
    "teacher_resize": 20,
    "teacher_size": 16,
    "crop_size": 13,
    "patch_image_size": 21,
    "patch_size": 9,
    "max_offset": 3,
}
PLAIN: dict[str, Any] = {  # neither colours nor blur nor flips
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "blur_probability": 0.0,
    "flip_probability": 0.0,
}
WHOLE: dict[str, Any] = {  # crops are the image itself
    "crop_scale": (1.0, 1.0),
    "patch_scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
}


def pixels(batch: int, height: int = 32, width: int = 32) -> Tensor:
    shape = (batch, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make(views: MultiCropViews, image: Tensor, seed: int = 0, visit: int = 0) -> list[Tensor]:
    """The teacher's view and the groups of crops."""
    index = torch.arange(len(image))
    made = views(image, torch.full_like(index, visit), index, seed)
    assert made.keys() == {"image", "crops"}
    return [made["image"], *made["crops"]]


def one_by_one(views: MultiCropViews, image: Tensor, seed: int) -> list[Tensor]:
    """The same views by torchvision on single images, from the same draws."""
    draws = counter_uniform(seed, torch.zeros(len(image)).long(), torch.arange(len(image)), 1 + DRAWS * 3 + 27)
    whole, crops, patches = [], [], []
    for x, u in zip(image / 255, draws, strict=True):
        teacher = TF.center_crop(TF.resize(x, [views.teacher_resize]), [views.teacher_size])
        whole.append(teacher.flip(-1) if u[0] < 0.5 else teacher)
        grid = one_crop(views, x, u[1:33], views.patch_image_size, views.patch_scale, blur=False)
        places, offsets = u[33:42], (u[42:60] * (views.max_offset + 1)).long().view(2, 9).tolist()
        step = (views.patch_image_size - views.patch_size - views.max_offset) // 2
        for cell in places.sort().indices[: views.num_patches].tolist():
            top, left = cell // 3 * step + offsets[0][cell], cell % 3 * step + offsets[1][cell]
            patches.append(TF.crop(grid, top, left, views.patch_size, views.patch_size))
        for u_crop in u[60:].view(-1, DRAWS):
            crops.append(one_crop(views, x, u_crop, views.crop_size, views.crop_scale, blur=True))
    return [torch.stack(view) for view in (whole, crops, patches)]


def one_crop(views: MultiCropViews, x: Tensor, u: Tensor, size: int, scale: tuple[float, float], blur: bool) -> Tensor:
    box = [b.view(1) for b in torch.tensor(x.shape[1:])]
    x = TF.resized_crop(x, *(int(b) for b in resized_boxes(u[None, BOX], *box, scale, views.ratio)), [size, size])
    if u[JITTER] < views.jitter_probability:
        brightness, contrast, saturation, turn = (2 * u[STRENGTHS] - 1).mul(torch.tensor(views.color_jitter)).tolist()
        for operation in list(permutations(range(4)))[int(u[ORDER] * 24)]:
            x = (
                TF.adjust_brightness(x, 1 + brightness),
                TF.adjust_contrast(x, 1 + contrast),
                TF.adjust_saturation(x, 1 + saturation),
                TF.adjust_hue(x, turn),
            )[operation]
    if u[GRAY] < views.gray_probability:
        x = TF.rgb_to_grayscale(x, 3)
    if blur and u[BLUR] < views.blur_probability:
        low, high = views.blur_sigma
        kernel = 2 * min(round(4 * high), size - 1) + 1
        x = TF.gaussian_blur(x, [kernel, kernel], [low + (high - low) * float(u[SIGMA])])
    return x.flip(-1) if u[FLIP] < views.flip_probability else x


@pytest.mark.parametrize(
    ("views", "shape"),
    [
        (MultiCropViews(), (4, 200, 260)),
        (MultiCropViews(**SMALL), (40, 32, 25)),
        (MultiCropViews.cifar(), (60, 32, 32)),
        (MultiCropViews.tiny_imagenet(), (30, 64, 64)),
    ],
    ids=["official", "small", "cifar", "tiny_imagenet"],
)
def test_views_equal_torchvision_one_by_one(views: MultiCropViews, shape: tuple[int, int, int]) -> None:
    """All of it at once: boxes, resizing, colours in their order, blur, flips, patches, image-major rows."""
    image = pixels(*shape)
    result = make(views, image, seed=5)
    for ours, theirs in zip(result, one_by_one(views, image, seed=5), strict=True):
        assert ours.is_contiguous() and ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_official_sizes() -> None:
    image, crops, patches = make(MultiCropViews(), pixels(2, 64, 64))
    assert [tuple(v.shape) for v in (image, crops, patches)] == [(2, 3, 224, 224), (4, 3, 160, 160), (10, 3, 96, 96)]
    vanilla = make(MultiCropViews(num_crops=1, num_patches=0), pixels(2, 64, 64))
    assert [len(v) for v in vanilla] == [2, 2]
    assert torch.equal(vanilla[1], crops[::2])  # the first of two
    only_patches = make(MultiCropViews(num_crops=0), pixels(2, 64, 64))
    assert torch.equal(only_patches[1], patches)


@pytest.mark.parametrize(("height", "width"), [(300, 400), (401, 300), (256, 256), (33, 97), (500, 257)])
def test_teacher_is_resize_and_centre_crop(height: int, width: int) -> None:
    image = pixels(2, height, width)
    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    result = MultiCropViews().teacher(image)
    torch.testing.assert_close(result, transform(image / 255), rtol=0, atol=1e-5)
    assert (result - transform(image) / 255).abs().max() < 1.5 / 255  # torchvision on uint8 rounds


def test_images_in_a_corner() -> None:
    """Views of an image on a larger canvas are those of the image."""
    views, image = MultiCropViews(**SMALL), pixels(6, 40, 30)
    canvas = torch.full((6, 3, 64, 64), 255, dtype=torch.uint8)
    canvas[:, :, :40, :30] = image
    index, size = torch.arange(6), torch.tensor([[40, 30]]).expand(6, 2)
    made = views(canvas, torch.zeros_like(index), index, 0, size)
    for a, b in zip([made["image"], *made["crops"]], make(views, image), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    torch.testing.assert_close(views.teacher(canvas, size), views.teacher(image), rtol=0, atol=1e-6)


# Patches


def positions(views: MultiCropViews, batch: int) -> Tensor:
    """Row and column of the upper left corner of each patch, (batch, n, 2), read from an image that holds them."""
    side = views.patch_image_size
    grid = torch.arange(side).float() / side
    image = torch.stack([grid[:, None].expand(side, side), grid.expand(side, side), torch.zeros(side, side)])
    patches = make(views, image.expand(batch, -1, -1, -1))[-1]
    rows = patches[:, :2] * side - patches[:, :2, :1, :1] * side
    assert (rows[:, 0] - torch.arange(views.patch_size)[:, None]).abs().max() < 1e-2  # a contiguous block
    assert (rows[:, 1] - torch.arange(views.patch_size)).abs().max() < 1e-2
    return (patches[:, :2, 0, 0] * side).round().long().view(batch, -1, 2)


def test_grid_of_the_official_patches() -> None:
    """Offsets of 68 with jitter 0..24, the last patch ending at 256; five of nine, each at most once."""
    corners = positions(MultiCropViews(num_crops=0, **WHOLE, **PLAIN), 500)
    cells = corners // 68
    offsets = corners - 68 * cells
    assert cells.max() == 2 and offsets.min() == 0 and offsets.max() == 24
    assert corners.max() + 96 == 256
    number = cells[..., 0] * 3 + cells[..., 1]
    assert all(len(row.unique()) == 5 for row in number)
    for place in range(5):  # each cell at each place of the order
        assert chisquare(number[:, place].bincount(minlength=9).numpy()).pvalue > 1e-3
    for axis in range(2):
        assert chisquare(offsets[..., axis].flatten().bincount(minlength=25).numpy()).pvalue > 1e-3
    assert abs(torch.corrcoef(offsets.reshape(-1, 2).T.float())[0, 1]) < 0.08
    assert abs(torch.corrcoef(offsets[:, :2, 0].T.float())[0, 1]) < 0.18  # independent between patches


def test_all_nine_patches() -> None:
    views = MultiCropViews(**{**SMALL, "num_patches": 9, "num_crops": 0}, **WHOLE, **PLAIN)
    corners = positions(views, 50)
    cells = corners // 4  # (21 - 9 - 3) // 2
    assert (corners - 4 * cells).max() <= 3
    number = cells[..., 0] * 3 + cells[..., 1]
    assert torch.equal(number.sort(1).values, torch.arange(9).expand(50, 9))


def test_patches_share_crop_flip_and_colours() -> None:
    """Without offsets and overlap, the nine patches put together are one image that torchvision makes."""
    views = MultiCropViews(**{**SMALL, "num_patches": 9, "patch_size": 7, "max_offset": 0, "num_crops": 1})
    image = pixels(20)
    draws = counter_uniform(0, torch.zeros(20).long(), torch.arange(20), 1 + DRAWS + 27)
    order = draws[:, 33:42].argsort(1)
    patches = make(views, image)[-1].view(20, 9, 3, 7, 7)
    for i in range(20):
        whole = torch.empty(3, 21, 21)
        for patch, cell in zip(patches[i], order[i].tolist(), strict=True):
            whole[:, cell // 3 * 7 :, cell % 3 * 7 :][:, :7, :7] = patch
        expected = one_crop(views, image[i] / 255, draws[i, 1:33], 21, views.patch_scale, blur=False)
        torch.testing.assert_close(whole, expected, rtol=0, atol=2e-5)


# Draws


def colour(batch: int, *rgb: float) -> Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1).expand(batch, 3, 13, 13)


def only(**changes: Any) -> MultiCropViews:
    """One crop an image, which is the image, with nothing but the changes."""
    return MultiCropViews(**{**SMALL, **WHOLE, **PLAIN, "num_crops": 1, "num_patches": 0, **changes})


def test_shares_of_changed_crops() -> None:
    """Jitter 0.8, grey 0.2, blur 0.5, flip 0.5 of crops; flip 0.5 of the teacher's view, independent of the crops'."""
    image = pixels(1, 13, 13).expand(4000, 3, 13, 13)
    same = image[0] / 255

    def changed(share: str, probability: float) -> Tensor:
        crop = make(only(**{share: probability, "blur_sigma": (0.5, 2.0)}), image)[1]  # below 0.2 nothing is seen
        return (crop - same).abs().amax((1, 2, 3)) > 1e-4

    for share, probability in (("jitter", 0.8), ("gray", 0.2), ("blur", 0.5), ("flip", 0.5)):
        found = changed(f"{share}_probability", probability).float()
        assert abs(found.mean() - probability) < 0.025  # 3 standard deviations at n = 4000
        assert not changed(f"{share}_probability", 0.0).any()
    teacher, crops = make(only(flip_probability=0.5), image)
    flips = torch.stack([(v - v[0]).abs().amax((1, 2, 3)) > 1e-3 for v in (teacher, crops)]).float()
    assert (flips.mean(1) - 0.5).abs().max() < 0.025
    assert abs(torch.corrcoef(flips)[0, 1]) < 0.06
    gray = make(only(gray_probability=1.0), image)[1]
    assert torch.equal(gray[:, 0], gray[:, 1]) and torch.equal(gray[:, 0], gray[:, 2])


def test_strengths_are_uniform() -> None:
    """Read from the pixels: factors in [0.6, 1.4], hue in [-0.1, 0.1] turns, sigma in [0.1, 2]."""
    n, certain = 2000, {"jitter_probability": 1.0}

    def uniform(values: Tensor, low: float, high: float) -> None:
        assert kstest(((values.double() - low) / (high - low)).numpy(), "uniform").pvalue > 1e-3

    brightness = make(only(color_jitter=(0.4, 0, 0, 0), **certain), colour(n, 0.5, 0.5, 0.5))[1]
    uniform(brightness[:, 0, 0, 0] / 0.5, 0.6, 1.4)
    half = torch.cat([colour(n, 0.4, 0.4, 0.4)[..., :6], colour(n, 0.6, 0.6, 0.6)[..., 6:]], dim=3)
    contrast = make(only(color_jitter=(0, 0.4, 0, 0), **certain), half)[1]
    uniform((contrast[:, 0, 0, 12] - contrast[:, 0, 0, 0]) / 0.2, 0.6, 1.4)
    saturation = make(only(color_jitter=(0, 0, 0.4, 0), **certain), colour(n, 0.6, 0.4, 0.4))[1]
    uniform((saturation[:, 0, 0, 0] - saturation[:, 1, 0, 0]) / 0.2, 0.6, 1.4)
    hue = make(only(color_jitter=(0, 0, 0, 0.1), **certain), colour(n, 0.3, 0.7, 0.7))[1]
    uniform(torch.tensor([colorsys.rgb_to_hsv(*rgb)[0] for rgb in hue[:, :, 0, 0].tolist()]), 0.4, 0.6)
    point = torch.zeros(n, 3, 13, 13)
    point[:, :, 6, 6] = 1
    blurred = make(only(blur_probability=1.0, blur_sigma=(0.3, 2.0)), point)[1][:, 0, 6].double()
    uniform((-0.5 / (blurred[:, 7] / blurred[:, 6]).log()).sqrt(), 0.3, 2.0)
    strong = make(only(color_jitter=(2.0, 0, 0, 0), **certain), colour(n, 0.2, 0.2, 0.2))[1]
    uniform(strong[:, 0, 0, 0] / 0.2, 0.0, 3.0)  # not from -1 on, as torchvision


def test_orders_are_uniform() -> None:
    u = counter_uniform(0, torch.zeros(24_000).long(), torch.arange(24_000), DRAWS)[:, ORDER]
    assert chisquare((u * 24).long().bincount(minlength=24).numpy()).pvalue > 1e-3


# Independence


def test_rows_are_image_major() -> None:
    shade = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 3, 32, 32) * 30
    views = MultiCropViews(**{**SMALL, **PLAIN})
    _, crops, patches = make(views, shade)
    expected = torch.arange(7) * 30 / 255
    torch.testing.assert_close(crops.mean((1, 2, 3)), expected.repeat_interleave(2))
    torch.testing.assert_close(patches.mean((1, 2, 3)), expected.repeat_interleave(5))


@pytest.mark.parametrize("views", [MultiCropViews(**SMALL), MultiCropViews.cifar()])
def test_views_do_not_depend_on_the_batch(views: MultiCropViews, monkeypatch: pytest.MonkeyPatch) -> None:
    image, index, visit = pixels(41), torch.arange(41) * 3, torch.arange(41) % 4

    def rows(keep: Tensor) -> list[Tensor]:
        made = views(image[keep], visit[keep], index[keep], 2)
        return [view.view(len(keep), -1) for view in (made["image"], *made["crops"])]

    whole = rows(torch.arange(41))
    for keep in (
        torch.tensor([7]),
        torch.arange(3, 40),
        torch.randperm(41, generator=torch.Generator().manual_seed(0)),
    ):
        assert all(torch.equal(a, b[keep]) for a, b in zip(rows(keep), whole, strict=True))
    monkeypatch.setattr("lit_kd.datamodules.views.CPU_BLOCK", 9000)  # and not on the blocks of a CPU
    assert all(torch.equal(a, b) for a, b in zip(rows(torch.arange(41)), whole, strict=True))


def test_other_keys_give_other_views() -> None:
    views, image = MultiCropViews(**SMALL), pixels(1).expand(30, 3, 32, 32)
    first = make(views, image)
    for other in (make(views, image, seed=1), make(views, image, visit=1)):
        assert all((a - b).abs().amax((1, 2, 3)).ne(0).float().mean() > 0.4 for a, b in zip(first, other, strict=True))
    crops = first[1].view(30, 2, -1)
    assert len(crops.flatten(0, 1).unique(dim=0)) == 60


def test_another_crop_leaves_the_others() -> None:
    two, three = (make(MultiCropViews(**SMALL, num_crops=n), pixels(9)) for n in (2, 3))
    assert torch.equal(two[0], three[0]) and torch.equal(two[2], three[2])
    assert torch.equal(two[1].view(9, 2, -1), three[1].view(9, 3, -1)[:, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uint8_and_float_agree(dtype: torch.dtype) -> None:
    views, image = MultiCropViews(**SMALL), pixels(20)
    result = make(views, image)
    for a, b in zip(result, make(views, (image.to(dtype) / 255)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert a.min() >= 0 and a.max() <= 1


@pytest.mark.parametrize("value", [0, 255])
def test_black_and_white_stay_in_range(value: int) -> None:
    for view in make(MultiCropViews(**SMALL), torch.full((200, 3, 32, 32), value, dtype=torch.uint8)):
        assert view.min() >= 0 and view.max() <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu() -> None:
    image, index = pixels(64), torch.arange(64)
    views = MultiCropViews(**SMALL)
    on_gpu = views(image.cuda(), torch.zeros_like(index).cuda(), index.cuda(), 0)
    for a, b in zip([on_gpu["image"], *on_gpu["crops"]], make(views, image), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"patch_size": 200, "max_offset": 57},
            "patch_size=200 and max_offset=57 do not fit into patch_image_size=256",
        ),
        ({"num_crops": 0, "num_patches": 0}, "leave the student nothing to see"),
        ({"crop_scale": (0.6, 0.08)}, r"crop_scale=\(0.6, 0.08\) must satisfy 0 < low <= high <= 1"),
        ({"patch_scale": (0.6, 1.1)}, r"patch_scale=\(0.6, 1.1\)"),
        ({"crop_scale": (0.0, 0.5)}, r"crop_scale=\(0.0, 0.5\)"),
        ({"ratio": (2.0, 1.0)}, r"ratio=\(2.0, 1.0\) must satisfy 0 < low <= high <= inf"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma="),
        ({"max_offset": -1}, "max_offset=-1"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "color_jitter=.* the last at most 0.5"),
    ],
)
def test_wrong_arguments_fail_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        MultiCropViews(**changes)
    assert "\n" not in str(error.value)


def test_single_channel_images() -> None:
    with pytest.raises(ValueError, match="images .B, 3, H, W., not .2, 1, 32, 32.*repeat a grey image three times"):
        make(MultiCropViews.cifar(), pixels(2)[:, :1])
    with pytest.raises(ValueError, match="repeat a grey image"):
        MultiCropViews.cifar().teacher(pixels(2)[:, :1])


# In a data module


class Views(ToyDataModule):
    """Views of 8x8 images, whose first pixel is their index."""

    def __init__(self, **settings: Any) -> None:
        views = MultiCropViews(
            teacher_resize=9, teacher_size=8, crop_size=5, patch_image_size=8, patch_size=3, max_offset=1, num_patches=2
        )
        super().__init__(**{"views": views, **settings})


def test_training_batches() -> None:
    data = ready(Views(batch_size=7, seed=2))
    raw = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch.keys() == {"image", "crops", "label", "index", "visit"}
    assert raw["image"].dtype == torch.uint8  # the batch of the loader is left alone
    expected = data.views(raw["image"], raw["visit"], raw["index"], 2)
    assert torch.equal(batch["image"], expected["image"])
    assert all(torch.equal(a, b) for a, b in zip(batch["crops"], expected["crops"], strict=True))
    assert [tuple(group.shape) for group in batch["crops"]] == [(14, 3, 5, 5), (14, 3, 3, 3)]


def test_evaluation_batches() -> None:
    data = ready(Views(val_fraction=0.1), "fit", "test")
    for loader in (data.train_eval_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for raw in loader:
            batch = data.on_after_batch_transfer(dict(raw), 0)
            assert batch.keys() == {"image", "label", "index"}
            assert torch.equal(batch["image"], data.views.teacher(raw["image"]))
            assert batch["image"].shape[1:] == (3, 8, 8)


def test_without_views_nothing_changes() -> None:
    batch = next(iter(ready(ToyDataModule()).train_dataloader()))
    assert ToyDataModule().views is None
    assert ToyDataModule().on_after_batch_transfer(batch, 0).keys() == {"image", "label", "index", "visit"}
    with pytest.raises(ValueError, match="views are random and augment=False forbids it"):
        Views(augment=False)


def test_ranks_and_workers_make_the_views_of_one(ranks: Callable[[int, int], None]) -> None:
    def crops(rank: int, world: int, **settings: Any) -> Tensor:
        ranks(rank, world)
        data = ready(Views(samples_per_epoch=24, **settings))
        batches = [data.on_after_batch_transfer(raw, 0) for raw in data.train_dataloader()]
        return torch.stack([torch.cat(batch["crops"][:1]).view(len(batch["index"]), -1) for batch in batches])

    single = crops(0, 1, batch_size=8)
    assert torch.equal(crops(0, 1, batch_size=8, num_workers=2), single)
    pair = torch.stack([crops(rank, 2, batch_size=4) for rank in range(2)], dim=2)  # steps, samples, ranks
    assert torch.equal(pair.flatten(1, 2), single)


class ViewRecorder(Recorder):
    """Keeps all views as they come."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        self.seen.append(torch.cat([view.flatten() for view in (batch["image"], *batch["crops"])]))
        return self.weight * batch["crops"][0].mean()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_equals_a_straight_run(tmp_path: Path, num_workers: int) -> None:
    """4 batches an epoch; stopped in the second."""
    settings: dict[str, Any] = {"batch_size": 8, "num_workers": num_workers}
    straight, first, rest = ViewRecorder(), ViewRecorder(stop_at=6), ViewRecorder()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(straight, Views(**settings))
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, max_epochs=2, callbacks=[keep]).fit(first, Views(**settings))
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(
        rest, Views(**settings), ckpt_path=tmp_path / "step=6.ckpt"
    )
    assert [len(run.seen) for run in (straight, first, rest)] == [8, 6, 2]
    assert torch.equal(torch.stack(first.seen + rest.seen), torch.stack(straight.seen))
    assert torch.equal(rest.weight, straight.weight)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    views = MultiCropViews.cifar(num_patches=3, flip_probability=0.0)
    run = trainer(tmp_path, max_steps=1)
    run.fit(ViewRecorder(), DigitsDataModule(train_fraction=0.1, views=views))
    loaded = DigitsDataModule.load_from_checkpoint(run.checkpoint_callback.best_model_path, weights_only=True)
    assert loaded.views == views


def test_image_sizes(tmp_path: Path) -> None:
    """A teacher's view of another size than the files: `image_size` is what networks get."""
    write(tmp_path / "tiny", tiny_imagenet(""))
    tiny = TinyImageNetDataModule(root=tmp_path / "tiny", views=MultiCropViews(**SMALL), batch_size=2)
    write(tmp_path / "train", class_folders([str(i) for i in range(10)]))
    cifar = CIFAR10DataModule(root=tmp_path, views=MultiCropViews(**SMALL), batch_size=2)
    for data in (tiny, cifar):
        assert data.image_size == 16
        batch = data.on_after_batch_transfer(next(iter(ready(data).train_dataloader())), 0)
        assert batch["image"].shape == (2, 3, 16, 16)
        batch = data.on_after_batch_transfer(next(iter(data.train_eval_dataloader())), 0)
        assert batch["image"].shape[1:] == (3, 16, 16)


# Folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        write(tmp_path / split, class_folders(["cat", "dog"], per_class=3, size=40))
    write(tmp_path / "train", {"cat/large.png": encode(7, 100)})
    return tmp_path


def test_folder_gives_whole_images(root: Path) -> None:
    """Views of a small file are those of its pixels; of a large one, of the file scaled to the canvas."""
    settings: dict[str, Any] = {"root": root, "views": MultiCropViews(**SMALL), "batch_size": 7, "canvas_size": 48}
    data = ready(ImageFolderDataModule(**settings))
    raw = next(iter(data.train_dataloader()))
    assert raw["image"].shape == (7, 3, 48, 48) and raw["image"].dtype == torch.uint8
    batch = data.on_after_batch_transfer(raw, 0)
    assert batch.keys() == {"image", "crops", "label", "index", "visit"}
    for row, index in enumerate(raw["index"].tolist()):
        path = data.sets["train"].paths[index]
        image = torch.from_numpy(decode_image(Path(path).read_bytes(), path)).permute(2, 0, 1)
        if path.endswith("large.png"):
            image = TF.resize(image, [48, 48])
        assert raw["size"][row].tolist() == list(image.shape[1:])
        key = slice(row, row + 1)
        expected = data.views(image[None], raw["visit"][key], raw["index"][key], 0)
        torch.testing.assert_close(batch["image"][key], expected["image"], rtol=0, atol=1e-6)
        for group, wanted in zip(batch["crops"], expected["crops"], strict=True):
            rows = group.view(7, -1, *group.shape[1:])[row]
            torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-6)
    workers = ready(ImageFolderDataModule(**{**settings, "batch_size": 3, "num_workers": 2}))
    streamed = [workers.on_after_batch_transfer(raw, 0) for raw in workers.train_dataloader()]
    assert torch.equal(torch.cat([b["crops"][1] for b in streamed])[: 7 * 5], batch["crops"][1])


def test_folder_evaluates_the_teachers_view(root: Path) -> None:
    data = ready(ImageFolderDataModule(root=root, views=MultiCropViews(**SMALL)), "test")
    assert data.image_size == 16
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    files = [torch.from_numpy(decode_image(Path(p).read_bytes(), p)).permute(2, 0, 1) for p in data.sets["test"].paths]
    expected = data.views.teacher(torch.stack(files))
    assert (batch["image"] - expected).abs().max() < 1.5 / 255  # workers round to uint8


def test_folder_arguments(root: Path) -> None:
    assert ImageFolderDataModule(root=root).image_size == 224
    with pytest.raises(ValueError, match="image_size=32 is not teacher_size=16 of the views: leave it out"):
        ImageFolderDataModule(root=root, image_size=32, views=MultiCropViews(**SMALL))


@pytest.mark.parametrize(
    ("words", "views"),
    [
        (
            ["--data.views=lit_kd.datamodules.MultiCropViews", "--data.views.crop_scale=[0.1,0.5]"],
            MultiCropViews(crop_scale=(0.1, 0.5)),
        ),
        (["--data.views.num_crops=1", "--data.views.num_patches=0"], MultiCropViews(num_crops=1, num_patches=0)),
    ],
)
def test_command_line(words: list[str], views: MultiCropViews) -> None:
    cli = LightningCLI(
        Recorder,
        ImageDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        run=False,
        args=["--data=CIFAR10DataModule", *words],
    )
    assert cli.datamodule.views == views
    assert cli.datamodule.image_size == 224


def test_yaml_and_checkpoint(tmp_path: Path) -> None:
    """`views:` with class_path and init_args; the checkpoint of such a run gives them back."""
    (tmp_path / "config.yaml").write_text(
        """
trainer: {max_steps: 1, accelerator: cpu, logger: false, enable_progress_bar: false, enable_model_summary: false}
data:
  class_path: DigitsDataModule
  init_args:
    train_fraction: 0.1
    views:
      class_path: lit_kd.datamodules.MultiCropViews
      init_args:
        {teacher_resize: 32, teacher_size: 32, crop_size: 24, patch_image_size: 32, patch_size: 14, max_offset: 2}
"""
    )
    cli = LightningCLI(
        ViewRecorder,
        ImageDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=None,
        args=["fit", "-c", str(tmp_path / "config.yaml"), f"--trainer.default_root_dir={tmp_path}"],
    )
    assert cli.datamodule.views == MultiCropViews.cifar(blur_probability=0.5)
    path = cli.trainer.checkpoint_callback.best_model_path
    loaded = DigitsDataModule.load_from_checkpoint(path, weights_only=True)
    assert loaded.views == cli.datamodule.views
