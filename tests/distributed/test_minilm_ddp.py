"""MiniLM in two processes equals one with twice the batch size: plain DDP, for what takes no part is frozen; FSDP2."""

from pathlib import Path

import minilm_worker
import pytest
import torch
import two_processes

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_equals_one_process(kind: str, tmp_path: Path) -> None:
    two = two_processes.launch(minilm_worker, kind, tmp_path)
    torch.set_num_threads(1)
    one = minilm_worker.run(kind, 1)
    for relations, expected in one.items():
        for name, value in expected.items():
            torch.testing.assert_close(two[relations][name], value, rtol=1e-4, atol=1e-5, msg=f"{relations}: {name}")
