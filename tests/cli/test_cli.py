import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_kd import __version__
from lit_kd.cli import LitKDCLI, main
from lit_kd.methods import Classifier, MCMIDistill, MCMITeacher
from lit_kd.models import vision_model

QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
NETWORK = {"class_path": "lit_kd.models.vision_model", "init_args": {"name": "resnet8", "num_classes": 10}}
DATA = {"class_path": "DigitsDataModule", "init_args": {"train_fraction": 0.02, "batch_size": 10}}


def config(path: Path, model: dict, data: dict = DATA, **trainer: object) -> str:
    trainer = {"max_epochs": 1, "limit_train_batches": 2, "limit_test_batches": 1, **trainer}
    file = path / "experiment.yaml"
    file.write_text(yaml.safe_dump({"trainer": trainer, "model": model, "data": data}))
    return str(file)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_fit_test_and_predict_in_subclass_mode_with_short_names(tmp_path: Path) -> None:
    file = config(tmp_path, {"class_path": "Classifier", "init_args": {"network": NETWORK}})
    main(["fit", "-c", file, *QUIET])
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["model"]["class_path"] == "lit_kd.Classifier"
    for command in ("test", "validate", "predict"):
        extra = ["--data.init_args.val_fraction=0.1", "--trainer.limit_predict_batches=1"]
        main([command, "-c", file, *QUIET, *extra, f"--ckpt_path={checkpoint}"])
    rebuilt = Classifier.load_from_checkpoint(checkpoint)
    assert rebuilt.num_classes == 10, "the linked value belongs in the checkpoint"


def test_what_the_data_know_is_linked_where_the_model_has_a_place_for_it(tmp_path: Path) -> None:
    file = config(tmp_path, {"class_path": "MCMIDistill", "init_args": {"student": NETWORK, "teacher": NETWORK}})
    built = LitKDCLI(["-c", file, *QUIET], run=False)
    assert isinstance(built.model, MCMIDistill) and built.model.num_classes == 10
    network = {**NETWORK, "init_args": {"name": "resnet8", "num_classes": 7}}
    file = config(tmp_path, {"class_path": "Classifier", "init_args": {"network": network}})
    with pytest.raises(ValueError, match="network has 7 classes but num_classes=10"):
        main(["fit", "-c", file, *QUIET])


def test_an_override_on_the_command_line_keeps_the_rest_of_the_config(tmp_path: Path) -> None:
    model = {"class_path": "MCMITeacher", "init_args": {"network": NETWORK, "weight": 0.2}}
    built = LitKDCLI(["-c", config(tmp_path, model), *QUIET, "--model.init_args.weight=0"], run=False)
    assert isinstance(built.model, MCMITeacher) and built.model.weight == 0


def test_an_optimizer_of_another_class_does_not_inherit_defaults(tmp_path: Path) -> None:
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    model = {"class_path": "Classifier", "init_args": {"network": NETWORK, "optimizer": optimizer}}
    built = LitKDCLI(["-c", config(tmp_path, model), *QUIET], run=False)
    group = built.model.make_optimizer(built.model.parameters()).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.1, 0, 0)


def test_callbacks_append(tmp_path: Path) -> None:
    file = config(
        tmp_path,
        {"class_path": "Classifier", "init_args": {"network": NETWORK}},
        callbacks=[{"class_path": "RunSummary"}],
    )
    built = LitKDCLI(["-c", file, *QUIET, "--trainer.callbacks+=ExportStudent"], run=False)
    names = [type(callback).__name__ for callback in built.trainer.callbacks]  # type: ignore[attr-defined]
    assert "RunSummary" in names and "ExportStudent" in names


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model=MCMIDistil"], "MCMIDistil"),
        (["--model=Classifier", "--model.init_args.temperture=2"], "temperture"),
        (["--data=DigitsDataModul"], "DigitsDataModul"),
        (["--data=DigitsDataModule", "--data.init_args.train_fractoin=0.1"], "train_fractoin"),
        (["--trainer.max_epoks=1"], "max_epoks"),
        (["--optimizer=Adam"], "optimizer"),
    ],
)
def test_a_typo_is_named(words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config(tmp_path, {"class_path": "Classifier", "init_args": {"network": NETWORK}})
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", file, *words])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert named in message[message.rindex("error:") :]


def test_print_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = config(tmp_path, {"class_path": "Classifier", "init_args": {"network": NETWORK}})
    with pytest.raises(SystemExit):
        main(["fit", "-c", file, "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["init_args"]["temperature"] == 1.0 and printed["seed_everything"] == 0


def test_a_missing_teacher_checkpoint_stops_before_training(tmp_path: Path) -> None:
    teacher = {**NETWORK, "init_args": {**NETWORK["init_args"], "checkpoint": "absent.ckpt"}}  # type: ignore[dict-item]
    file = config(tmp_path, {"class_path": "MCMIDistill", "init_args": {"student": NETWORK, "teacher": teacher}})
    with pytest.raises((FileNotFoundError, SystemExit, ValueError)) as error:
        main(["fit", "-c", file, *QUIET])
    assert "absent.ckpt" in str(error.value)


def test_a_classifier_checkpoint_serves_as_teacher(tmp_path: Path) -> None:
    main(["fit", "-c", config(tmp_path, {"class_path": "Classifier", "init_args": {"network": NETWORK}}), *QUIET])
    [checkpoint] = (tmp_path / "checkpoints").iterdir()
    trained = Classifier.load_from_checkpoint(checkpoint).network.eval()
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(vision_model("resnet8", 10, checkpoint=checkpoint).eval()(image), trained(image))


def test_the_program_itself() -> None:
    version = subprocess.run([sys.executable, "-m", "lit_kd", "--version"], capture_output=True, text=True, timeout=300)
    assert version.returncode == 0
    assert __version__ in version.stdout


def test_shell_completion(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    code = "import sys; sys.argv = ['lit-kd']; from lit_kd.cli import main; main()"
    answer = tmp_path / "answer"
    settings = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    line = {"COMP_LINE": "lit-kd ", "COMP_POINT": "7", "COMP_TYPE": "9"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **settings, **line}, timeout=300, check=False)
    assert {"fit", "validate", "test", "predict"} <= {word.strip() for word in answer.read_text().split("\n")}
