"""Fine-tuning on packed chats in two processes equals one, under DDP and FSDP2."""

from pathlib import Path

import pytest
import synthetic_worker
import torch
import two_processes

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_equals_one_process(kind: str, tmp_path: Path) -> None:
    two = two_processes.launch(synthetic_worker, kind, tmp_path)
    torch.set_num_threads(1)
    one = synthetic_worker.run(kind, 1, tmp_path / "one")
    for name in ("adapter", "whole"):
        assert two[name].keys() == one[name].keys()
        for key, value in one[name].items():
            torch.testing.assert_close(two[name][key], value, rtol=1e-3, atol=1e-4, msg=f"{name}: {key}")
