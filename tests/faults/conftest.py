from pathlib import Path

import fault_toy
import pytest


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What trainings and stages read."""
    folder: Path = tmp_path_factory.mktemp("inputs")
    fault_toy.write_inputs(folder)
    return folder
