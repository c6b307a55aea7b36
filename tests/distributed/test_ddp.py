"""Two processes under plain ``ddp`` equal one with twice the batch size."""

from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
import worker

from lit_kd.datamodules import DigitsDataModule

pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ddp")
    return two_processes.launch(worker, "ddp", folder)


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    return worker.run_ddp(devices=1)


@pytest.mark.parametrize("method", sorted({*worker.METHODS} - {"crd", "fitnet"}))  # CRD draws, FitNet has batch norm
def test_weights_and_centroids_equal_one_process(
    method: str, one: dict[str, dict[str, Any]], two: dict[str, dict[str, Any]]
) -> None:
    for key, expected in one[method]["states"].items():
        torch.testing.assert_close(two[method]["states"][key][0], expected[0], rtol=0, atol=1e-5, msg=key)


@pytest.mark.parametrize("method", worker.METHODS)
def test_ranks_agree(method: str, two: dict[str, dict[str, Any]]) -> None:
    # Batch-norm statistics are each rank's own until the next step; CRD's banks and the centroids are not.
    for key, (first, second) in two[method]["states"].items():
        if "running_" not in key:
            assert torch.equal(first, second), key


@pytest.mark.parametrize("method", ["kd", "teacher"])
def test_metrics_equal_one_process(method: str, one: dict[str, dict[str, Any]], two: dict[str, dict[str, Any]]) -> None:
    names = {"test/acc", "test/nll", "val/acc", "val/nll"}
    names |= {"test/acc_omitted", "test/acc_omitted_3"} if method == "kd" else {"train_set/cmi", "train_set/surrogate"}
    assert names <= two[method]["metrics"].keys()
    torch.testing.assert_close(two[method]["metrics"], one[method]["metrics"], rtol=0, atol=1e-5)


def test_each_test_sample_counts_once(one: dict[str, dict[str, Any]], two: dict[str, dict[str, Any]]) -> None:
    data = DigitsDataModule()
    data.setup("test")
    labels = data.sets["test"].labels
    assert len(labels) % 2 == 1  # a padding sampler would count one twice
    confusion = two["kd"]["confusion"]
    assert torch.equal(confusion.sum(1), labels.bincount())
    assert torch.equal(confusion, one["kd"]["confusion"])
    assert (confusion.sum(0) > 0).sum() > 2  # the network tells classes apart


def test_robustness_report_equals_that_of_one_process(
    one: dict[str, dict[str, Any]], two: dict[str, dict[str, Any]]
) -> None:
    assert two["robustness"] == one["robustness"]
    assert one["robustness"]["module"]["samples"] == 45
