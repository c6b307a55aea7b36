"""A loss that is not finite ends a training before the weights change, names the samples, and costs nothing saved."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_toy import TRAININGS, Poison, newest, train


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in TRAININGS),
        ("MCMIDistill", {"precision": "bf16-mixed"}),
        ("MCMIDistill", {"accumulate_grad_batches": 2}),
        ("SSBDistill", {"accumulate_grad_batches": 2}),
    ],
)
def test_training(
    name: str, settings: dict[str, Any], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poison = Poison(batch=2)
    with pytest.raises(FloatingPointError, match="not finite at step") as error:
        train(name, inputs, tmp_path, poison, **settings)
    found = re.search(r"indices of the batch: (\[.*\])", str(error.value))
    assert found is not None and found[1] == str(poison.index)
    torch.testing.assert_close(poison.weights_now(), poison.weights, rtol=0, atol=0)
    checkpoint = newest(tmp_path)
    assert f"go on with --ckpt_path '{checkpoint}'." in capsys.readouterr().err
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]  # of the step before
    torch.testing.assert_close({key: saved[key] for key in poison.weights}, poison.weights, rtol=0, atol=0)
