"""The fine-tuning configs on tiny encoders and texts, and what the command line passes from the data to the model."""

from pathlib import Path
from typing import Any

import minilm_toy
import pytest
import text_toy
import yaml
from transformers import AutoModel, PreTrainedModel

from lit_kd.cli import LitKDCLI, main
from lit_kd.methods import QuestionAnswering, SequenceClassifier

CONFIGS = Path(__file__).parents[2] / "configs" / "minilm"
TINY = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def encoder(path: str, head: str, num_labels: int = 2) -> PreTrainedModel:
    return text_toy.reader() if head == "question_answering" else text_toy.classifier(num_labels)


def tiny(name: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """The config with our own network and data in the place of the real ones; and as it was."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    network = {**config["model"]["init_args"]["network"], "class_path": f"{__name__}.encoder"}
    data = {"class_path": "text_toy.TinySQuAD"}
    if name == "glue":
        data = {"class_path": "text_toy.TinyGLUE", "init_args": config["data"]["init_args"]}
    model = {**config["model"], "init_args": {**config["model"]["init_args"], "network": network}}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({**config, "model": model, "data": data}))
    return str(file), config


@pytest.mark.parametrize("name", ["glue", "squad1", "squad2"])
def test_fits_and_predicts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, config = tiny(name, tmp_path)
    main(["fit", "-c", file, *TINY, "--trainer.max_epochs=1"])
    run = Path("runs/minilm") / name
    assert (run / "export" / "model.safetensors").is_file() and (run / "summary.md").is_file()
    main(["predict", "-c", file, *TINY])
    assert (run / ("predictions.safetensors" if name == "glue" else "predictions.json")).is_file()
    assert config["data"]["init_args"]["tokenizer"] == config["model"]["init_args"]["network"]["init_args"]["path"]


@pytest.mark.parametrize(("task", "num_labels"), [("sst2", 2), ("mnli", 3), ("stsb", 1)])
def test_task_and_number_of_labels_come_from_the_data(task: str, num_labels: int, tmp_path: Path) -> None:
    file, _ = tiny("glue", tmp_path)
    built = LitKDCLI(["-c", file, *TINY, f"--data.init_args.task={task}"], run=False)
    assert isinstance(built.model, SequenceClassifier)
    assert built.model.num_labels == built.model.network.config.num_labels == num_labels
    assert built.model.hparams["task"] == task and hasattr(built.model, "val_mismatched") == (task == "mnli")


def test_recipes(tmp_path: Path) -> None:
    for name, threshold, lr in (("squad1", float("inf"), 4e-5), ("squad2", 0.0, 4e-5)):
        built = LitKDCLI(["-c", tiny(name, tmp_path)[0], *TINY], run=False)
        assert isinstance(built.model, QuestionAnswering)
        assert (built.model.reading["null_threshold"], built.model.lr) == (threshold, lr)
        assert built.trainer.gradient_clip_val == 1.0


def test_data_without_a_number_of_labels(tmp_path: Path) -> None:
    file, _ = tiny("glue", tmp_path)
    config = yaml.safe_load(Path(file).read_text())
    config["data"] = {"class_path": "text_toy.TinySQuAD"}
    Path(file).write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="network has 2 labels but num_labels=None"):
        LitKDCLI(["-c", file, *TINY], run=False)


DISTIL = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "MiniLMDistill" in path.read_text())


@pytest.mark.parametrize("name", DISTIL)
def test_distils(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each config on a tiny encoder, a file of words and two steps, its own recipe otherwise."""
    monkeypatch.chdir(tmp_path)
    path = minilm_toy.saved(minilm_toy.encoder(), tmp_path / "model")
    (tmp_path / "texts.txt").write_text("w1 w2 w3\nw4 w5\n" * 200)
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    own, teacher = model["student"]["init_args"], model["teacher"]["init_args"]
    assert data["tokenizer"] == own["path"] and own["config"]["intermediate_size"] == 4 * own["config"]["hidden_size"]
    own.update(path=path, config={"num_hidden_layers": 2, "hidden_size": 12})
    teacher.update(path=path)
    model["warmup_steps"] = 1
    if "heads" in model:
        model["heads"] = 6
    for key in ("dataset", "dataset_config"):
        data.pop(key, None)
    data.update(tokenizer=path, files=["texts.txt"], max_length=16, batch_size=2)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    steps = "--trainer.max_steps=2" if config["trainer"].get("max_steps") else "--trainer.limit_train_batches=2"
    main(["fit", "-c", str(file), *TINY, steps])
    assert len(AutoModel.from_pretrained(tmp_path / "runs/minilm" / name / "export").encoder.layer) == 2


def test_stages_of_the_assistant_find_each_other() -> None:
    for name in DISTIL:
        teacher = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]["init_args"]["teacher"]["init_args"]
        if teacher["path"].startswith("runs/"):
            assert Path(teacher["path"]).parts[2] in DISTIL
