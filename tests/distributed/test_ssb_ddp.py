"""SSB in two processes equals one: the count of tokens is that of both, and each problem is answered once."""

from pathlib import Path

import pytest
import ssb_worker
import torch
import two_processes

from lit_kd.language.records import read_records

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_equals_one_process(kind: str, tmp_path: Path) -> None:
    two = two_processes.launch(ssb_worker, kind, tmp_path)
    torch.set_num_threads(1)
    one = ssb_worker.run(kind, 1, tmp_path / "one")
    for teacher in ("adapter_off", "network", "none"):
        assert two[teacher].keys() == one[teacher].keys() and all("lora_" in key for key in two[teacher])
        for key, value in one[teacher].items():
            torch.testing.assert_close(two[teacher][key], value, rtol=1e-3, atol=1e-4, msg=f"{teacher}: {key}")
    if kind == "ddp":
        both = read_records(tmp_path / "rollouts2")
        assert len(list((tmp_path / "rollouts2").glob("rows-*.jsonl"))) == 2
        assert both == read_records(tmp_path / "one/rollouts1") and [row["index"] for row in both] == list(range(7))
        assert read_records(tmp_path / "refined2") == read_records(tmp_path / "one/refined1")
        for written, expected in zip(*(read_records(tmp_path / n) for n in ("logits2", "one/logits1")), strict=True):
            assert written == pytest.approx(expected, rel=1e-4)
        assert len(list((tmp_path / "logits2").glob("rows-*.jsonl"))) == 2
