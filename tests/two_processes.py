"""Scripts that run in processes of their own, ``worker.py KIND FOLDER``: to start them, and their end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

TESTS = Path(__file__).parent


def launch(worker: ModuleType, kind: str, folder: Path) -> Any:
    """Run a worker's script, of which Lightning starts the second process; the results."""
    command = [sys.executable, str(worker.__file__), kind, str(folder)]
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    # A session of its own, so that after a deadlock the second process ends as well.
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        try:
            errors = process.communicate(timeout=400)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, f"exit {process.returncode}: {errors}"
    return torch.load(folder / "results.pt", weights_only=True)


def main(run: Callable[[str, Path], Any]) -> None:
    """What a worker's script does: rank 0 saves what ``run(kind, folder)`` gives."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    results = run(sys.argv[1], folder)
    if torch.distributed.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    torch.distributed.destroy_process_group()
