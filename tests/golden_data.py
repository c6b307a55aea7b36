"""Numbers of the public reference implementations: where they are, and how close is close enough."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

TESTS = Path(__file__).parent
DEFAULT = TESTS.parent.parent / "shared" / "golden" / "public"
FOLDERS = (TESTS / "golden", Path(os.environ.get("LITKD_GOLDEN", DEFAULT)))


def load_golden(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Arrays of `name`.npz; the float32 ones as `dtype`. Skips the test where the file is absent."""
    tensors = {key: torch.from_numpy(np.asarray(array)) for key, array in golden_arrays(name).items()}
    return {key: value.to(dtype) if value.dtype == torch.float32 else value for key, value in tensors.items()}


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """Arrays of `name`.npz as they are, such as texts. Skips the test where the file is absent."""
    for folder in FOLDERS:
        if (path := folder / f"{name}.npz").is_file():
            with np.load(path) as arrays:
                return dict(arrays)
    pytest.skip(f"{name}.npz is neither in tests/golden nor in LITKD_GOLDEN ({FOLDERS[1]})")


def assert_golden(actual: Tensor, reference: Tensor) -> None:
    """Compare within the tolerance of the index: float32 against float32, or float64 against float64."""
    rtol, atol = (1e-9, 1e-12) if reference.dtype == torch.float64 else (2e-5, 2e-6)
    torch.testing.assert_close(actual, reference, rtol=rtol, atol=atol * reference.abs().max().item())
