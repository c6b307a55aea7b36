"""Bags of words against the official code's numbers, closed forms and an explicit loop."""

import math

import pytest
import torch
from golden_data import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_kd.losses import WordDistances, bow_codes, bow_loss, bow_perplexity, bow_target

DTYPES = [torch.float32, torch.float64]


def example(channels: int = 8, size: int = 5, words: int = 16, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, size, size, generator=generator).relu()
    return features, torch.randn(words, channels, generator=generator).relu()


# Golden


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("assignment", "pool"), [("soft", "max"), ("soft", "avg"), ("hard", "max"), ("hard", "avg")])
def test_codes_and_targets_of_the_official_code(assignment: str, pool: str, dtype: torch.dtype) -> None:
    golden = load_golden(f"obow_bow_{assignment}_{pool}", dtype)
    words, inverse_delta = golden["vocabulary_initial"], 15.0 if assignment == "soft" else None
    mean = torch.tensor(0.5, dtype=dtype)
    for batch in (1, 2):
        features = golden[f"features_{batch}"][:, :, 1:-1, 1:-1]
        distances = WordDistances(features, words)
        measured = golden[f"mean_min_distance_{batch}_float64"].to(dtype)
        torch.testing.assert_close(distances.nearest.mean(), measured, rtol=1e-6, atol=0)
        mean = 0.99 * mean + 0.01 * distances.nearest.mean()
        torch.testing.assert_close(mean, golden[f"mu_after_{batch}"][0], rtol=1e-6, atol=0)
        codes = bow_codes(features, words, inverse_delta, mean, hard=inverse_delta is None)
        if f"codes_{batch}" in golden:
            torch.testing.assert_close(codes, golden[f"codes_{batch}"], rtol=0, atol=1e-5)
        for target in (bow_target(codes, pool), distances.target(inverse_delta, mean, pool)):
            torch.testing.assert_close(target, golden[f"bow_{batch}"], rtol=0, atol=1e-5)
        words = golden[f"vocabulary_after_{batch}"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_of_the_official_code(dtype: torch.dtype) -> None:
    golden = load_golden("obow_predictor_loss", dtype)
    suffix = "" if dtype == torch.float32 else "__float64"
    total = torch.zeros((), dtype=dtype)
    for group, crops in enumerate((2, 3)):
        logits = [golden[f"logits_group_{group}_level_{level}"] for level in (0, 1)]
        levels = [bow_loss(z, golden[f"target_level_{level}"], crops) for level, z in enumerate(logits)]
        loss = torch.stack(levels).mean()
        torch.testing.assert_close(loss, golden[f"loss_group_{group}{suffix}"], rtol=1e-5, atol=1e-6)
        total += loss
    torch.testing.assert_close(total, golden[f"loss_total{suffix}"], rtol=1e-5, atol=1e-6)


def test_perplexity_is_exact() -> None:
    golden = load_golden("obow_perplexity", torch.float64)
    targets = [golden[f"target_level_{level}"] for level in (0, 1)]
    image = torch.stack([bow_perplexity(y).mean() for y in targets])
    batch = torch.stack([bow_perplexity(y.mean(0)) for y in targets])
    # rtol: the float32 rows sum to 1 but for rounding
    torch.testing.assert_close(image, golden["expected_correct_image"], rtol=1e-7, atol=0)
    torch.testing.assert_close(batch, golden["expected_correct_batch"], rtol=1e-7, atol=0)
    uniform = torch.full((8192,), 1 / 8192)
    assert bow_perplexity(uniform).item() == pytest.approx(8192, rel=1e-5)  # the official code says 7571.7


# Codes and targets


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_equals_an_explicit_loop(pool: str) -> None:
    features, words = example()
    flat = features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(
        WordDistances(features, words).nearest,
        torch.cdist(flat, words, compute_mode="donot_use_mm_for_euclid_dist").square().amin(2),
        rtol=1e-5,
        atol=1e-6,
    )
    expected = torch.zeros(2, 16)
    for b in range(2):
        codes = []
        for u in range(25):
            distance = torch.stack([(flat[b, u] - word).square().sum() for word in words])
            codes.append((-(10.0 / 0.7) * distance).softmax(0))
        pooled = torch.stack(codes).amax(0) if pool == "max" else torch.stack(codes).mean(0)
        expected[b] = pooled / pooled.sum()
    actual = WordDistances(features, words).target(10.0, 0.7, pool)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(bow_target(bow_codes(features, words, 10.0, 0.7), pool), expected, rtol=1e-5, atol=1e-7)


@given(st.integers(0, 10**6), st.sampled_from(["max", "avg"]), st.sampled_from([None, 0.1, 15.0, 1e4]))
@settings(max_examples=25, deadline=None)
def test_target_is_a_distribution(seed: int, pool: str, inverse_delta: float | None) -> None:
    features, words = example(seed=seed, batch=3)
    target = WordDistances(features, words).target(inverse_delta, 0.5, pool)
    assert (target >= 0).all()
    torch.testing.assert_close(target.sum(1), torch.ones(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    features, words = example(channels=2048)
    features, words = (20 * features).to(dtype), (20 * words).to(dtype)  # |x|^2 overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = bow_codes(features, words, 15.0, 0.5)
        target = WordDistances(features, words).target(15.0, 0.5)
    assert codes.dtype == target.dtype == torch.float32
    assert codes.isfinite().all()
    torch.testing.assert_close(codes, bow_codes(features.float(), words.float(), 15.0, 0.5), rtol=0, atol=0)
    torch.testing.assert_close(target, bow_target(codes))


def test_constant_map_is_one_word() -> None:
    words = example()[1]
    features = words[3][None, :, None, None].expand(2, -1, 4, 4)
    expected = torch.zeros(2, 16)
    expected[:, 3] = 1
    torch.testing.assert_close(WordDistances(features, words).target(1e4, 1.0), expected, rtol=0, atol=1e-6)


def test_max_pooling_ignores_counts() -> None:
    words = 10 * torch.eye(4)
    features = words[[0] * 9 + [1]].T[None, :, :, None]  # (1, 4, 10, 1): nine locations at word 0, one at word 1
    distances = WordDistances(features, words)
    torch.testing.assert_close(distances.target(15.0, 1.0), torch.tensor([[0.5, 0.5, 0, 0]]))
    torch.testing.assert_close(distances.target(15.0, 1.0, "avg"), torch.tensor([[0.9, 0.1, 0, 0]]))
    torch.testing.assert_close(distances.target(None, 1.0), torch.tensor([[0.5, 0.5, 0, 0]]))
    torch.testing.assert_close(distances.target(None, 1.0, "avg"), torch.tensor([[0.9, 0.1, 0, 0]]))


def test_soft_codes_tend_to_hard_ones() -> None:
    features, words = example()
    hard = bow_codes(features, words, None, 1.0, hard=True)
    nearest = torch.cdist(features.flatten(2).transpose(1, 2), words).argmin(2)
    assert torch.equal(hard.flatten(2).argmax(1), nearest)
    assert torch.equal(hard.sum(1), torch.ones(2, 5, 5)) and hard.amax() == 1
    torch.testing.assert_close(bow_codes(features, words, 1e6, 1.0), hard, rtol=0, atol=1e-5)


def test_scale_of_features_cancels() -> None:
    features, words = example()
    codes = bow_codes(features, words, 15.0, WordDistances(features, words).nearest.mean())
    large = bow_codes(7 * features, 7 * words, 15.0, WordDistances(7 * features, 7 * words).nearest.mean())
    torch.testing.assert_close(large, codes, rtol=1e-4, atol=1e-6)


def test_permuted_words_permute_codes_and_leave_the_loss() -> None:
    features, words = example()
    order = torch.randperm(16)
    target, permuted = (WordDistances(features, v).target(15.0, 0.5) for v in (words, words[order]))
    torch.testing.assert_close(permuted, target[:, order])
    logits = torch.randn(4, 16)
    torch.testing.assert_close(bow_loss(logits[:, order], permuted, 2), bow_loss(logits, target, 2))


def test_distances_are_not_negative_where_they_cancel() -> None:
    words = 100 + torch.rand(16, 512)
    features = words[:9].T[None, :, :, None]
    distances = WordDistances(features, words)
    assert (distances.nearest >= 0).all()
    codes = bow_codes(features, words, 1.0, 1.0)
    assert torch.equal(codes[0, :, :, 0].argmax(0), torch.arange(9))


# Memory


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("inverse_delta", [15.0, None])
@pytest.mark.parametrize("limit", [100, 64 * 25, 64 * 60, 64 * 25 * 3])  # a row, an image, two images, all
def test_pieces_keep_to_the_limit(limit: int, inverse_delta: float | None, pool: str) -> None:
    features, words = example(channels=1, words=64, batch=3)
    expected = WordDistances(features, words).target(inverse_delta, 0.5, pool)
    with Largest() as seen:
        distances = WordDistances(features, words, max_elements=limit)
        target = distances.target(inverse_delta, 0.5, pool)
    assert seen.largest <= max(limit, 3 * 64)  # the target itself is (3, 64)
    torch.testing.assert_close(target, expected, rtol=5e-5, atol=1e-6)  # processors sum in orders of their own


def test_pieces_within_the_kept_distances() -> None:
    """More elements than the passes take at a time, so an image is cut into parts."""
    features, words = example(size=9, words=8192)
    expected = bow_target(bow_codes(features, words, 15.0, 0.5))
    torch.testing.assert_close(WordDistances(features, words).target(15.0, 0.5), expected, rtol=1e-6, atol=1e-9)


# Loss


def test_loss_is_cross_entropy_less_entropy() -> None:
    target = torch.rand(3, 7).softmax(1)
    logits = torch.randn(6, 7, requires_grad=True)
    loss = bow_loss(logits, target, 2)
    rows = target.repeat_interleave(2, 0)
    cross_entropy = torch.nn.functional.cross_entropy(logits, rows)
    entropy = -(target * target.log()).sum(1).mean()
    torch.testing.assert_close(loss, cross_entropy - entropy)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, cross_entropy)]
    torch.testing.assert_close(*gradients)
    assert bow_loss(target.log(), target, 1).abs() < 1e-6
    assert (bow_loss(logits, target, 2, reduction="none") > 0).all()


def test_loss_of_uniform_logits() -> None:
    target = torch.zeros(1, 8192)
    target[0, :4] = 0.25
    assert bow_loss(torch.zeros(1, 8192), target, 1).item() == pytest.approx(math.log(8192) - math.log(4), rel=1e-6)


def test_rows_are_image_major() -> None:
    target = torch.eye(2)
    logits = 50 * torch.eye(2).repeat_interleave(3, 0)  # rows 0,0,0,1,1,1
    torch.testing.assert_close(bow_loss(logits, target, 3, reduction="none"), torch.zeros(6))
    assert bow_loss(50 * torch.eye(2).repeat(3, 1), target, 3) > 10


def test_number_of_crops_does_not_weigh() -> None:
    target, logits = torch.rand(2, 5).softmax(1), torch.randn(2, 5)
    twice = bow_loss(logits.repeat_interleave(2, 0), target, 2)
    torch.testing.assert_close(twice, bow_loss(logits, target, 1))


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, v: bow_codes(x, v[:, 1:], 15.0, 0.5), "features have 8 channels, but words 7"),
        (lambda x, v: WordDistances(x, v[:, 1:]), "features have 8 channels, but words 7"),
        (lambda x, v: bow_loss(v, v, 2), r"logits \(16, 8\) do not fit target \(16, 8\).*must be \(32, 8\)"),
        (lambda x, v: bow_loss(v, v[:8, :4], 2), r"must be \(16, 4\)"),
    ],
)
def test_bad_arguments_say_so(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*example())
