from functools import cache
from pathlib import Path
from typing import Any

import fault_toy
import pytest


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What trainings and stages read."""
    folder: Path = tmp_path_factory.mktemp("inputs")
    fault_toy.write_inputs(folder)
    return folder


@pytest.fixture(scope="session")
def straight(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a training by name: how it ends, and its moments."""

    @cache
    def run(name: str) -> tuple[dict[str, Any], fault_toy.Moments]:
        moments = fault_toy.Moments()
        return fault_toy.train(name, inputs, tmp_path_factory.mktemp("straight"), moments), moments

    return run
