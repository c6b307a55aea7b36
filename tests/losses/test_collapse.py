import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_kd.losses import effective_rank, feature_spread, mean_pairwise_cosine, nearest_words, words_in_use


def test_effective_rank_of_known_matrices() -> None:
    orthogonal = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()).Q
    assert effective_rank(orthogonal).item() == pytest.approx(8)
    assert effective_rank(torch.outer(torch.rand(9), torch.rand(4))).item() == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.ones(5, 3)).item() == pytest.approx(1, abs=1e-4)  # total collapse
    assert effective_rank(torch.zeros(5, 3)).item() == 0
    # singular values 3, 1: p = 3/4, 1/4
    matrix = orthogonal[:, :2] @ torch.diag(torch.tensor([3.0, 1.0]).double())
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(matrix).item() == pytest.approx(math.exp(entropy))
    assert effective_rank(1e-6 * matrix).item() == pytest.approx(math.exp(entropy))
    assert effective_rank(matrix.bfloat16()).dtype == torch.float32


@given(st.integers(0, 100), st.integers(2, 12), st.integers(1, 6))
def test_cosine_spread_and_rank_equal_loops_over_pairs(seed: int, samples: int, channels: int) -> None:
    features = torch.randn(samples, channels, generator=torch.Generator().manual_seed(seed)).double()
    unit = features / features.norm(dim=1, keepdim=True)
    pairs = [float(unit[a] @ unit[b]) for a in range(samples) for b in range(samples) if a != b]
    assert mean_pairwise_cosine(features).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
    std = torch.stack([(unit[:, c] - unit[:, c].mean()).square().mean().sqrt() for c in range(channels)])
    assert feature_spread(features).item() == pytest.approx(float(std.mean()) * math.sqrt(channels), abs=1e-9)
    assert 1 - 1e-9 <= effective_rank(features).item() <= min(samples, channels) + 1e-9


def test_cosine_and_spread_of_collapse_health_and_single_samples() -> None:
    assert mean_pairwise_cosine(torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]])).item() == pytest.approx(1)
    assert mean_pairwise_cosine(torch.eye(4)).item() == pytest.approx(0)
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(-1)
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).item() == 0  # not NaN
    assert mean_pairwise_cosine(torch.ones(1, 3)).isnan()
    sphere = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    assert feature_spread(sphere).item() == pytest.approx(1, abs=0.02)


def test_words_in_use_counts_above_a_tenth_of_the_even_share() -> None:
    even = torch.full((3, 8), 1 / 8)
    assert words_in_use(even) == 8
    one = torch.zeros(3, 8)
    one[:, 2] = 1
    assert words_in_use(one) == 1
    target = torch.tensor([[0.98, 0.0, 0.019, 0.001]])  # threshold 1 / 40
    assert words_in_use(target) == 1
    assert words_in_use(target, threshold=0.01) == 2
    assert words_in_use(target, threshold=0.0) == 3


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_nearest_words_equal_cdist(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features, words = (torch.randn(n, 6, generator=generator).double() for n in (30, 11))
    index, distance = nearest_words(features, words, chunk)
    least = torch.cdist(features, words).square().min(1)
    assert torch.equal(index, least.indices)
    torch.testing.assert_close(distance, least.values)
    assert nearest_words(words, words)[0].tolist() == list(range(11))
    assert nearest_words(words.float(), words.float())[1].min() >= 0  # rounding does not make it negative
    assert [part.shape for part in nearest_words(features[:0], words)] == [(0,), (0,)]
