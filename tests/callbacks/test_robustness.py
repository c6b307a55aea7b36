"""The robustness report of ``test``: files, resume, other people's data and networks, errors."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import ModelParallelStrategy
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toy import ToyImages, quiet_trainer, toy_network

import lit_kd.callbacks.robustness as robustness
from lit_kd.attacks import Protocol
from lit_kd.callbacks import RobustnessReport
from lit_kd.methods import Classifier, DefensiveDistill

FEW = Protocol(
    attacks=("noise", "fgsm_naive", "pgd_naive", "pgd_T", "pgd_margin", "apgd_dlr", "transfer", "cw"),
    eps_grid=(0.1, 1.0),
    steps=3,
    cw={"steps": 5, "search_steps": 2},
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def report_of(
    module: Classifier, folder: Path, data: LightningDataModule | None = None, **settings: Any
) -> dict[str, float]:
    """Test with the report; the logged metrics."""
    callback = RobustnessReport(**{"protocol": FEW, "batch_size": 8, **settings})
    trainer = quiet_trainer(callbacks=[callback], default_root_dir=folder)
    return trainer.test(module, datamodule=data or ToyImages(), verbose=False)[0]


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "robustness.json").read_text())


def defended() -> DefensiveDistill:
    return DefensiveDistill(toy_network(), toy_network(6), 3, temperature=20.0)


def test_report_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = report_of(defended(), tmp_path, undefended=toy_network())
    content = read(tmp_path)
    report, baseline = content["networks"]["module"], content["networks"]["undefended"]
    assert report["samples"] == 31 and report["temperature"] == 20.0 and baseline["temperature"] == 1.0
    assert {"transfer_undefended", "transfer_teacher", "pgd_T", "pgd_margin@1"} <= report["rows"].keys()
    assert not any(name.startswith(("transfer", "pgd_T")) for name in baseline["rows"])
    assert report["rows"]["pgd_T"]["settings"]["temperature"] == 20.0
    assert report["threat_model"]["eps"] == 8 / 255 and report["seed"] == 0
    assert content["dtype"] == "torch.float32" and content["torch"] == torch.__version__
    assert metrics["test/robust_acc"] == pytest.approx(report["headline"]["robust_accuracy"]["accuracy"])
    assert metrics["test/robust/pgd_margin"] == pytest.approx(report["rows"]["pgd_margin"]["accuracy"])
    text = (tmp_path / "robustness.md").read_text()
    assert text in capsys.readouterr().out and "naive, can be masked" in text and "Flags of undefended" in text
    assert Image.open(tmp_path / "robustness.png").size[0] > 800
    assert not list((tmp_path / "robustness").glob("*"))  # the chunks have served


def test_interrupted_report_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, calls, evaluate = defended(), [], robustness.evaluate_chunk

    def count(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*args)

    straight = tmp_path / "straight"
    report_of(module, straight)
    monkeypatch.setattr(robustness, "evaluate_chunk", count)
    with pytest.raises(BaseException):  # noqa: B017, PT011  Lightning exits, or passes the interrupt on
        report_of(module, tmp_path)
    assert (
        len(list((tmp_path / "robustness").glob("*/*.safetensors"))) == 2
        and not (tmp_path / "robustness.json").exists()
    )
    report_of(module, tmp_path)
    assert len(calls) == 5  # of four chunks two were there
    assert read(tmp_path) == read(straight)


def test_finished_chunks_of_other_weights_or_settings_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    monkeypatch.setattr(
        RobustnessReport, "_key", lambda *args, key=RobustnessReport._key: keys.append(key(*args)) or keys[-1]
    )
    module = defended()
    report_of(module, tmp_path)
    report_of(module, tmp_path)
    report_of(module, tmp_path, protocol=Protocol(attacks=("pgd_margin",), steps=1, eps_grid=()))
    with torch.no_grad():
        next(module.student.parameters()).add_(1e-3)
    report_of(module, tmp_path)
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_networks_are_left_as_they_came(tmp_path: Path) -> None:
    undefended = nn.Sequential(nn.BatchNorm2d(3), toy_network(dropout=0.5)).train()
    module = Classifier(nn.Sequential(nn.BatchNorm2d(3), toy_network()), 3)
    before = [{name: value.clone() for name, value in net.state_dict().items()} for net in (undefended, module)]
    report_of(module, tmp_path, undefended=undefended)
    for net, state in zip((undefended, module), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert undefended.training


class Pairs(LightningDataModule):
    """Somebody's own data: (image, label) pairs."""

    def __init__(self, size: int = 20, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        images = scale * torch.rand(size, 3, 8, 8, generator=generator)
        self.set = TensorDataset(images, torch.arange(size) % 3)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.set, batch_size=6)


def test_pairs_and_a_choice_of_samples(tmp_path: Path) -> None:
    report_of(Classifier(toy_network(), 3), tmp_path, Pairs(), max_samples=7, num_images=3)
    assert read(tmp_path)["networks"]["module"]["samples"] == 7


def test_samples_are_drawn_over_the_whole_set_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def note(model: nn.Module, image: Any, label: Any, index: Any, *rest: Any) -> Any:
        chosen.append(index.tolist())
        return robustness_chunk(model, image, label, index, *rest)

    robustness_chunk = robustness.evaluate_chunk
    monkeypatch.setattr(robustness, "evaluate_chunk", note)
    cheap = {"max_samples": 8, "protocol": Protocol(attacks=("pgd_margin",), steps=1, eps_grid=())}
    for _ in range(2):
        report_of(Classifier(toy_network(), 3), tmp_path, **cheap)
    cheap["protocol"] = Protocol(attacks=("pgd_margin",), seed=1, steps=1)
    report_of(Classifier(toy_network(), 3), tmp_path, **cheap)
    assert chosen[0] == chosen[1] != chosen[2] and max(chosen[0]) > 8


def test_library_attack_by_class_path(tmp_path: Path) -> None:
    pytest.importorskip("torchattacks")
    library = [{"class_path": "torchattacks.CW", "init_args": {"steps": 3}}]
    report_of(Classifier(toy_network(), 3), tmp_path, library=library)
    (row,) = (row for row in read(tmp_path)["networks"]["module"]["rows"].values() if row["kind"] == "library")
    assert row["caveat"] and row["on_survivors"]


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    report_of(Classifier(toy_network(), 3), tmp_path)
    assert read(tmp_path)["networks"] and not (tmp_path / "robustness.png").exists()


@pytest.mark.parametrize(
    ("settings", "data", "sentence"),
    [
        ({}, Pairs(size=0), "the test set is empty"),
        ({}, Pairs(scale=255.0), r"needs pixels in \[0, 1\]"),
        ({"protocol": Protocol(eps=8.0, attacks=("pgd_margin",))}, None, r"eps=8.0 must lie in \[0, 1\]"),
    ],
)
def test_bad_input_gets_one_sentence(
    tmp_path: Path, settings: dict[str, Any], data: LightningDataModule | None, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        report_of(Classifier(toy_network(), 3), tmp_path, data, **settings)


def test_a_network_of_probabilities_is_refused(tmp_path: Path) -> None:
    module = Classifier(nn.Sequential(toy_network(), nn.Softmax(1)), 3)
    with pytest.raises(ValueError, match="remove the softmax"):
        report_of(module, tmp_path)


def test_sharded_parameters_are_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(default_root_dir=tmp_path)
    trainer.strategy.__class__ = ModelParallelStrategy
    with pytest.raises(ValueError, match="needs whole networks"):
        RobustnessReport().setup(trainer, Classifier(toy_network(), 3), "test")
