"""Fixtures of the data module tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from shared_data import DATA

from lit_kd.datamodules import loading


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keep the machine's other cores free."""
    torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data, or skip."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA} (environment variable LITKD_DATA)")
    return DATA


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Play rank `rank` of `world` without processes."""

    def play(rank: int, world: int) -> None:
        monkeypatch.setattr(loading, "rank_and_world", lambda: (rank, world))

    return play
