"""A causal network with an adapter in two processes equals one: plain DDP, and FSDP2 with the head gathered in time."""

from pathlib import Path

import causal_worker
import pytest
import torch
import two_processes
from safetensors.torch import load_file

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_equals_one_process(kind: str, tmp_path: Path) -> None:
    two = two_processes.launch(causal_worker, kind, tmp_path)
    torch.set_num_threads(1)
    one = causal_worker.run(kind, 1, tmp_path / "one")
    for name in ("adapter", "whole", "resumed"):
        assert two[name].keys() == one[name].keys()
        for key, value in one[name].items():
            torch.testing.assert_close(two[name][key], value, rtol=1e-3, atol=1e-4, msg=f"{name}: {key}")
    assert two["saved"] == sorted(two["adapter"]) and all("lora_" in key for key in two["saved"])
    for key, value in two["adapter"].items():
        torch.testing.assert_close(two["resumed"][key], value, rtol=0, atol=0)
    ours, theirs = (load_file(tmp_path / place / "model.safetensors") for place in ("export2", "one/export1"))
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-4)
