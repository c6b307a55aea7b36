"""Counter-based uniforms and the batched crop and flip."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare, kstest

from lit_kd.datamodules.augment import counter_uniform, random_crop_flip


def uniforms(batch: int, seed: int = 0, visit: int = 0) -> torch.Tensor:
    return counter_uniform(seed, torch.full((batch,), visit), torch.arange(batch), 3)


def test_uniforms_do_not_depend_on_the_batch() -> None:
    visit, index = torch.arange(50) % 3, torch.arange(50) * 7
    whole = counter_uniform(5, visit, index, 3)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(counter_uniform(5, visit[order], index[order], 3), whole[order])
    assert torch.equal(counter_uniform(5, visit[:1], index[:1], 2), whole[:1, :2])


def test_uniforms_equal_the_hash_in_plain_integers() -> None:
    """A change of the stream would silently change every run: the last line pins it."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    for seed, visit, index in [(0, 0, 0), (1, 2, 3), (2**40 + 7, 10**6, 10**9), (-1, 0, 49_999)]:
        result = counter_uniform(seed, torch.tensor([visit]), torch.tensor([index]), 3)[0]
        state = mix(mix(visit ^ mix((seed ^ 0x9E3779B9) % 2**32)) ^ index)
        expected = [(mix(state ^ mix(slot + 0x9E3779B9)) >> 8) * 2**-24 for slot in range(3)]
        assert result.tolist() == expected
    assert (counter_uniform(1, torch.tensor([2]), torch.tensor([3]), 1) * 2**24).item() == 10644016


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    """Over samples, slots, visits and seeds: seed 1 at visit 0 must not be seed 0 at visit 1."""
    draws = torch.cat([uniforms(2000, seed, visit) for seed in (0, 1) for visit in (0, 1, 2)], dim=1)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert min(kstest(column.numpy(), "uniform").pvalue for column in draws.T) > 1e-3
    correlation = torch.corrcoef(draws.T) - torch.eye(draws.shape[1])
    assert correlation.abs().max() < 0.09  # 4 standard deviations at n = 2000


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (8, True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_equals_a_loop(padding: int, flip: bool, dtype: torch.dtype) -> None:
    image = torch.randint(0, 256, (40, 3, 12, 10), generator=torch.Generator().manual_seed(0)).to(dtype)
    draws = uniforms(40)
    expected = []
    for sample, (u, v, w) in zip(image, draws.tolist(), strict=True):
        top, left = int(u * (2 * padding + 1)), int(v * (2 * padding + 1))
        crop = F.pad(sample, (padding,) * 4)[:, top : top + 12, left : left + 10]
        expected.append(crop.flip(-1) if flip and w < 0.5 else crop)
    result = random_crop_flip(image, draws, padding, flip)
    assert result.dtype == dtype
    assert torch.equal(result, torch.stack(expected))


def test_offsets_and_flips_are_uniform() -> None:
    padding, batch = 4, 9000
    # One bright pixel in the middle shows where the crop and the flip have put it.
    image = torch.zeros(batch, 1, 19, 19, dtype=torch.uint8)
    image[:, :, 9, 9] = 1
    image[:, :, 9, 8] = 2  # left of it, right of it after a flip
    result = random_crop_flip(image, uniforms(batch), padding, flip=True)
    place = (result == 1).flatten(1).float().argmax(1)
    rows, columns = place // 19 - 5, place % 19 - 5
    counts = torch.zeros(9, 9).index_put_((rows, columns), torch.ones(batch), accumulate=True)
    assert chisquare(counts.flatten().numpy()).pvalue > 1e-3
    flipped = (result == 2).flatten(1).float().argmax(1) > place
    assert abs(flipped.float().mean() - 0.5) < 0.02


def test_largest_uniform_stays_inside() -> None:
    draws = torch.full((1, 3), 1 - 2.0**-24)
    for padding in range(1, 40):
        image = torch.ones(1, 1, 2 * padding + 1, 2 * padding + 1)
        assert random_crop_flip(image, draws, padding, flip=False)[0, 0, 0, 0] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_equals_cpu() -> None:
    index = torch.arange(64)
    image = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    draws = counter_uniform(3, index % 5, index, 3)
    on_gpu = counter_uniform(3, (index % 5).cuda(), index.cuda(), 3)
    assert torch.equal(on_gpu.cpu(), draws)
    assert torch.equal(random_crop_flip(image.cuda(), on_gpu, 4, True).cpu(), random_crop_flip(image, draws, 4, True))
