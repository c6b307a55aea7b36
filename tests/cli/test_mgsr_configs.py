"""MGSR's configs in order on tiny networks of the same families and files in the real format."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_toy import causal, saved
from doc_commands import arithmetic_commands
from transformers import AutoModelForCausalLM

from lit_kd.cli import main
from lit_kd.language.arithmetic import write_start

CONFIGS = Path(__file__).parents[2] / "configs/mgsr"
TINY = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
FAMILIES = {"gpt2": "gpt2", "openllama2": "llama", "opt": "opt"}
ROLES, BASELINES = ("teacher", "student_sft"), ("kd", "gkd", "distillm")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def tiny(name: str, path: str = "", **data: Any) -> list[str]:
    """The config with tiny networks, few rows and short answers; its own settings otherwise."""
    config = read(name)
    model, own = config["model"]["init_args"], config["data"]["init_args"]
    for role in ("network", "teacher"):
        settings = model[role].get("init_args", {}) if isinstance(model.get(role), dict) else {}
        if settings and not settings["path"].startswith("runs/"):
            settings["path"] = path
        if settings.pop("dtype", None):
            settings["dtype"] = "float32"
        if "hidden_size" in settings.get("config", {}):
            settings["config"] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 4}
    if not own["tokenizer"].startswith("runs/"):
        own["tokenizer"] = path
    if "sampling" in model:
        model["sampling"]["max_new_tokens"] = 3
    source = model.get("source", {})
    for one in (source, source.get("init_args", {}).get("source", {})):
        if one.get("class_path") in ("OnPolicy", "Replay"):
            one["init_args"]["sampling"] = {"max_new_tokens": 3}
        if one.get("class_path") == "Replay":  # else it only writes once validation got worse
            one["init_args"].update(initial_phi=1.0, capacity=2)
    config["trainer"].pop("precision", None)
    if config["data"]["class_path"] == "ArithmeticDataModule":
        own.update({key: 6 for key in ("samples", "test_samples") if key in own})
        own.update({"val_fraction": 0.4} if "val_fraction" in own else {})
    else:
        own.update({"val_samples": 4, "answer_in_validation": min(2, own.get("answer_in_validation", 0))})
    own.update({"batch_size": 2} if "batch_size" in own else {}, **data)
    file = Path(f"{name}.yaml")
    file.write_text(yaml.safe_dump(config))
    epochs = ["--trainer.max_epochs=1"] if "max_epochs" in config["trainer"] else []
    return ["-c", str(file), *TINY, *epochs]


def instructions() -> None:
    """Where the configs look for MiniLLM's data."""
    for file, count in (("dolly/raw.jsonl", 8), ("vicuna/valid.jsonl", 3)):
        path = Path("data/minillm") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"instruction": f"Do {i}.", "input": "", "output": f"Done {i}."} for i in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def base(family: str) -> str:
    network = causal(FAMILIES[family], max_position_embeddings=1024)
    return saved(Path("base"), network, template=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pair(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teacher, student, and what is distilled from the one into the other."""
    monkeypatch.chdir(tmp_path)
    instructions()
    path = base(family)
    chosen_by = {"teacher": "val/rougeL", "student_sft": "val/loss"}
    distilled = ("mgsr", *BASELINES) if family == "gpt2" else ("mgsr",)
    for role in (*ROLES, *distilled):
        main(["fit", *tiny(f"{family}_{role}", path)])
        run = Path("runs/mgsr") / family / role
        network = AutoModelForCausalLM.from_pretrained(run / "export")
        assert network.config.model_type == FAMILIES[family] and (run / "summary.md").is_file()
        chosen = json.loads((run / "export/model.json").read_text())["metrics"]
        assert list(chosen) == [chosen_by.get(role, "val/rougeL")]


def test_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds of one setting are one row of the file."""
    monkeypatch.chdir(tmp_path)
    instructions()
    export = "runs/mgsr/gpt2/mgsr/export"
    saved(Path(export), causal("gpt2", max_position_embeddings=1024), template=None)
    for seed in ("10", "20"):
        main(["test", *tiny("evaluate"), f"--model.init_args.sampling.seed={seed}"])
    (group,) = json.loads(Path("runs/mgsr/gpt2/results.json").read_text())
    assert [run["seed"] for run in group["runs"]] == [10, 20] and "test/rougeL" in group["mean"]
    assert group["settings"]["kind"] == "overlap" and group["settings"]["data"]["test"] == "vicuna"
    assert group["settings"]["sampling"]["temperature"] == 1.0 and group["settings"]["engine"]["model"] == export


def test_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Path("runs/mgsr/arithmetic")
    start, *stages = arithmetic_commands("mgsr.md")
    assert start == ["python", "-m", "lit_kd.language.arithmetic", str(runs / "start")]
    write_start(runs / "start", width=16, layers=1, heads=2)
    for _, subcommand, _, config, *words in stages:
        main([subcommand, *tiny(Path(config).stem), *words])
    assert all((runs / role / "export/model.safetensors").is_file() for role in (*ROLES, "mgsr"))
    student = AutoModelForCausalLM.from_pretrained(runs / "student_sft/export").config
    assert student.hidden_size == 8
    assert "pass@1" in (runs / "results.md").read_text()
    assert len(json.loads((runs / "results.json").read_text())) == 2


def test_recipes_are_those_of_the_specification() -> None:
    for family, epochs, lr in (("gpt2", 10, 5e-5), ("openllama2", 20, 5e-4)):
        config = read(f"{family}_teacher")
        assert config["trainer"]["max_epochs"] == epochs
        assert config["model"]["init_args"]["optimizer"]["init_args"] == {"lr": lr, "weight_decay": 0.01}
    assert read("openllama2_teacher")["data"]["init_args"]["batch_size"] == 4
    for family, lr in (("gpt2", 5e-4), ("openllama2", 5e-4), ("opt", 5e-5)):
        config = read(f"{family}_student_sft")
        assert config["trainer"]["max_epochs"] == 3 and config["trainer"]["gradient_clip_val"] == 1.0
        assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == lr
        mgsr, start = read(f"{family}_mgsr"), f"runs/mgsr/{family}/student_sft/export"
        assert mgsr["model"]["init_args"]["lr"] == lr
        assert (
            mgsr["model"]["init_args"]["network"]["init_args"]["path"]
            == mgsr["data"]["init_args"]["tokenizer"]
            == start
        )
        assert [mgsr["model"]["init_args"][f"{part}_weight"] for part in ("kd", "ce", "span")] == [1.0, 1.0, 1.0]
    for name in (path.stem for path in CONFIGS.glob("*.yaml") if "InstructionDataModule" in path.read_text()):
        sampling = read(name)["model"]["init_args"]["sampling"]  # one and the same everywhere (LMOps#205)
        assert sampling == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 256, "seed": 10}
