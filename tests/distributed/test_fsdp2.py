"""FSDP2 in two processes: what is sharded, both forms of checkpoint, resume, and export."""

from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
import worker
from torch.distributed.checkpoint import FileSystemReader

from lit_kd.models import load_exported, vision_model

pytestmark = [pytest.mark.dist, pytest.mark.slow]
both_forms = pytest.mark.parametrize("distributed", [True, False])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[Any, Any]:
    return two_processes.launch(worker, "fsdp", folder)


@both_forms
def test_both_networks_are_sharded_after_each_step(distributed: bool, results: dict[Any, Any]) -> None:
    assert results[distributed]["straight sharded"] == {"student": [True] * 4, "teacher": [True] * 4}
    assert results[distributed]["resumed sharded"] == {"student": [True] * 2, "teacher": [True] * 2}


@both_forms
def test_resumed_equals_straight(distributed: bool, results: dict[Any, Any]) -> None:
    straight, resumed = results[distributed]["straight"], results[distributed]["resumed"]
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)
    torch.manual_seed(1)
    start = vision_model("test_convnext", 10).state_dict()
    moved = [key for key, value in start.items() if not torch.equal(straight[f"network.{key}"], value)]
    assert len(moved) > 0.9 * len(start)


@both_forms
def test_checkpoint_holds_no_teacher(distributed: bool, folder: Path, results: dict[Any, Any]) -> None:
    checkpoint = folder / str(distributed) / "step=2.ckpt"
    if distributed:
        keys = set(FileSystemReader(checkpoint).read_metadata().state_dict_metadata)
    else:
        content = torch.load(checkpoint, weights_only=True)
        keys = content["state_dict"].keys() | content["optimizer_states"][0]["state"].keys()
    assert any("network.backbone." in str(key) for key in keys)
    assert not [key for key in keys if "teacher." in str(key)]


def test_lacking_key_is_named(results: dict[Any, Any]) -> None:
    expected = "The checkpoint lacks 1 keys of MCMIDistill: ['network.backbone.head.fc.weight']."
    assert results["lacking"] == expected


@both_forms
def test_export_is_whole(distributed: bool, folder: Path, results: dict[Any, Any]) -> None:
    exported = load_exported(folder / str(distributed) / "export_2")
    weights = results[distributed]["resumed"]
    for key, value in exported.state_dict().items():
        assert torch.equal(value, weights[f"network.{key}"]), key


def test_centroids_of_a_sharded_network(results: dict[Any, Any]) -> None:
    torch.testing.assert_close(results["centroids"], worker.run_fsdp_teacher(devices=1), rtol=0, atol=1e-6)
