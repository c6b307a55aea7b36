import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toy import ToyImages, fit, quiet_trainer, toy_network

from lit_kd.callbacks import (
    ConfusionMatrixReport,
    EigenCAMPanel,
    ExportStudent,
    PredictionsWriter,
    RandomState,
    RunSummary,
)
from lit_kd.callbacks.eigen_cam import eigen_cam
from lit_kd.methods import Classifier, MCMIDistill, MCMITeacher
from lit_kd.models import load_exported, vision_model
from lit_kd.objectives import DKD

DATA = {"batch_size": 20, "val_fraction": 0.2}


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "curves.csv").open()))


def test_summary_has_the_metrics_of_each_epoch_in_its_own_row(tmp_path: Path) -> None:
    module = MCMITeacher(toy_network(), 3, measure_every_n_epochs=2)
    fit(module, ToyImages(**DATA), max_epochs=4, callbacks=[RunSummary()], default_root_dir=tmp_path)
    table = rows(tmp_path)
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3"]
    assert [row["train_set/cmi"] == "nan" for row in table] == [True, False, True, False]
    assert len({row["val/nll"] for row in table}) == 4
    assert "| val/acc |" in (tmp_path / "summary.md").read_text()
    assert Image.open(tmp_path / "curves.png").size[0] > 300


def test_summary_goes_on_after_a_resume(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, filename="last")
    settings = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    fit(Classifier(toy_network(), 3), ToyImages(**DATA), max_epochs=2, callbacks=[RunSummary(), checkpoint], **settings)
    first = rows(tmp_path)
    trainer = quiet_trainer(max_epochs=3, callbacks=[RunSummary()], default_root_dir=tmp_path)
    trainer.fit(Classifier(toy_network(), 3), datamodule=ToyImages(**DATA), ckpt_path=tmp_path / "last.ckpt")
    resumed = rows(tmp_path)
    assert len(resumed) == 3 and resumed[0] == first[0]
    assert (resumed[1]["epoch"], resumed[1]["val/nll"]) == ("1", first[1]["val/nll"])


def test_export_at_the_end_of_a_fit_loads_back_with_one_call(tmp_path: Path) -> None:
    network = vision_model("resnet8", 3)
    fit(Classifier(network, 3), ToyImages(**DATA), callbacks=[ExportStudent(str(tmp_path / "out"))])
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(load_exported(tmp_path / "out")(image), network.eval()(image))
    description = json.loads((tmp_path / "out" / "model.json").read_text())
    assert description["class_names"] == ["red", "green", "blue"] and "val/acc" in description["metrics"]


def test_the_best_weights_can_be_exported(tmp_path: Path) -> None:
    """Chosen by a metric, not by where the fit ends."""

    class Worse(Classifier):
        def on_validation_epoch_end(self) -> None:  # the second epoch is the best of three
            self.log("val/score", float([1, 3, 2][self.current_epoch]))

    torch.manual_seed(0)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="val/score", mode="max", save_top_k=-1)
    callbacks = [ExportStudent(str(tmp_path / "out"), weights="best"), ModelCheckpoint(tmp_path / "all"), keep]
    trainer = quiet_trainer(max_epochs=3, callbacks=callbacks, enable_checkpointing=True)
    trainer.fit(Worse(toy_network(), 3), datamodule=ToyImages(**DATA))
    exported = load_file(tmp_path / "out" / "model.safetensors")
    for epoch, same in (("0", False), ("1", True), ("2", False)):
        saved = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(value, saved[f"network.{name}"]) for name, value in exported.items()) == same
    assert json.loads((tmp_path / "out" / "model.json").read_text())["metrics"] == {"val/score": 3.0}


class Secretive(MCMIDistill):
    """Of :class:`Nobody`: knows ``too much``
    of its user.

    More.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, api_key: str, log_to: str, objective: Any = None
    ) -> None:
        super().__init__(student, teacher, 3, objective, image_shape=(3, 8, 8))
        self.save_hyperparameters("api_key", "log_to")


def test_the_card_of_a_run_says_how_it_came_about_and_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_swordfish")
    seed_everything(3, verbose=False)
    home = str(Path.home())
    module = Secretive(vision_model("resnet8", 3), toy_network(), "swordfish", f"{home}/me/x", objective=DKD())
    export = ExportStudent(str(tmp_path / "out"), license="mit", dataset="me/toy", notes="A note.")
    fit(module, ToyImages(**DATA), max_epochs=2, callbacks=[export])
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.license, card.data.datasets) == ("mit", ["me/toy"])
    assert {result.metric_name for result in card.data.eval_results} == {"val/acc", "val/nll"}
    for line in (
        "Of `Nobody`: knows `too much` of its user.\n",
        "- Teacher: `Sequential` of 127 parameters.",
        "Method: Linfeng Ye",
        "Data: ToyImages (`me/toy`).",
        "| log_to | x |",
        "| objective | DKD |",
        "| training.epochs | 2 |",
        "| training.steps | 6 |",
        "| training.seed | 3 |",
        "| training.optimizer | [SGD] |",
        "| training.lr | [0.05] |",
        "| data.batch_size | 20 |",
        "As the training ended.",
        "A note.",
    ):
        assert line in card.text, line
    assert "swordfish" not in card.content and home not in card.content and str(tmp_path) not in card.content


def test_a_module_and_data_of_somebody_else_have_a_card(tmp_path: Path) -> None:
    class Mine(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.teacher = toy_network(), "adapter_off"

        def training_step(self, batch: Any) -> Tensor:
            return self.network(batch[0]).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.5)

    loader = DataLoader(TensorDataset(torch.rand(4, 3, 8, 8)), batch_size=2)
    quiet_trainer(max_epochs=1, callbacks=[ExportStudent(str(tmp_path / "out"))]).fit(Mine(), loader)
    text = (tmp_path / "out/README.md").read_text()
    assert "# Sequential, trained by Mine" in text and "| training.lr | [0.5] |" in text and "Data:" not in text


def test_best_weights_need_something_that_chooses() -> None:
    with pytest.raises(ValueError, match="needs a ModelCheckpoint with monitor among the callbacks"):
        fit(Classifier(toy_network(), 3), ToyImages(**DATA), callbacks=[ExportStudent(weights="best")])


def test_confusion_report_counts_every_test_image_once(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[ConfusionMatrixReport()], default_root_dir=tmp_path)
    trainer.test(Classifier(toy_network(), 3), datamodule=ToyImages(), verbose=False)
    table = list(csv.reader((tmp_path / "confusion.csv").open()))
    assert [row[0] for row in table[1:]] == ["red", "green", "blue"]
    assert [sum(map(int, row[1:])) for row in table[1:]] == [11, 10, 10]
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_predictions_are_written_one_row_a_sample(tmp_path: Path) -> None:
    module = Classifier(toy_network(), 3)
    trainer = quiet_trainer(callbacks=[PredictionsWriter()], default_root_dir=tmp_path)
    trainer.predict(module, datamodule=ToyImages(eval_batch_size=10), return_predictions=False)
    written = load_file(tmp_path / "predictions.safetensors")
    assert written["index"].tolist() == list(range(31))
    assert torch.equal(written["prediction"], written["probability"].argmax(1))
    torch.testing.assert_close(written["probability"].sum(1), torch.ones(31))


def test_eigen_cam_finds_the_direction_of_largest_variance() -> None:
    pattern = torch.zeros(4, 4)
    pattern[1:3, 1:3] = 1
    activations = pattern * torch.tensor([3.0, -2.0, 1.0]).view(3, 1, 1) + 0.01 * torch.rand(3, 4, 4)
    maps = eigen_cam(torch.stack([activations, -activations]), (4, 4))
    for found in maps:  # the sign of a singular vector is arbitrary, that of the map is not
        assert found.max() == 1 and found.min() == 0
        assert found[1:3, 1:3].min() > 0.9 and found[0].max() < 0.1


def test_eigen_cam_panel_is_drawn_for_images_of_one_class(tmp_path: Path) -> None:
    panel = EigenCAMPanel(toy_network(), class_index=1, num_images=4, layer="1")
    fit(Classifier(toy_network(), 3), ToyImages(**DATA), callbacks=[panel], default_root_dir=tmp_path)
    width, height = Image.open(tmp_path / "eigen_cam_green.png").size
    assert width > height > 300
    with pytest.raises(ValueError, match="no sub-module 'layer3'"):
        fit(Classifier(toy_network(), 3), callbacks=[EigenCAMPanel(toy_network(), layer="layer3")])
    with pytest.raises(ValueError, match="no image of class_index=7"):
        fit(Classifier(toy_network(), 3), callbacks=[EigenCAMPanel(toy_network(), class_index=7, layer="1")])


def test_random_state_comes_with_every_method_and_is_restored_when_training_starts(tmp_path: Path) -> None:
    seed_everything(3)
    module = Classifier(toy_network(dropout=0.5), 3)
    trainer = fit(module, ToyImages(**DATA))
    assert any(isinstance(callback, RandomState) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    after = torch.rand(3)
    torch.manual_seed(99)
    drawn: list[torch.Tensor] = []

    class Watch(Classifier):
        def on_train_start(self) -> None:
            drawn.append(torch.rand(3))

    resumed = Watch(toy_network(dropout=0.5), 3)
    quiet_trainer(max_epochs=2).fit(resumed, datamodule=ToyImages(**DATA), ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(drawn[0], after)
