"""The stages of SSB as commands: every config in order on tiny networks, and after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_toy import causal, saved
from doc_commands import arithmetic_commands
from ssb_toy import as_if_accepted, as_if_answered
from transformers import AutoModelForCausalLM

from lit_kd.cli import main
from lit_kd.language.arithmetic import write_start
from lit_kd.language.records import read_records

ROOT = Path(__file__).parents[2]
TINY = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
SHORT = {"max_new_tokens": 4}


def tiny(name: str, path: str, **data: Any) -> list[str]:
    """The config with a tiny network, few problems and short answers; its own settings otherwise."""
    config = yaml.safe_load((ROOT / "configs/ssb" / f"{name}.yaml").read_text())
    model, own = config["model"]["init_args"], config["data"]["init_args"]
    network = model["network"]["init_args"]
    if not network["path"].startswith("runs/"):
        network.update(path=path, dtype="float32")
    if "tokenizer" in own and not own["tokenizer"].startswith("runs/"):
        own["tokenizer"] = path
    if "sampling" in model:
        model["sampling"].update(SHORT, samples=min(2, model["sampling"].get("samples", 1)))
    config["trainer"].pop("precision", None)
    for key in ("samples", "test_samples", "limit"):
        if key in own:
            own[key] = 6
    own.update(data)
    file = Path(f"{name}.yaml")
    file.write_text(yaml.safe_dump(config))
    return ["-c", str(file), *TINY]


def test_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Path("runs/ssb/arithmetic")
    start, *stages = arithmetic_commands("ssb.md")
    assert start == ["python", "-m", "lit_kd.language.arithmetic", str(runs / "start")]
    write_start(runs / "start", width=16, layers=1, heads=2)
    for _, subcommand, _, config, *words in stages:
        short = {"val_fraction": 0.2, "batch_size": 2} if subcommand == "fit" else {}
        epochs = ["--trainer.max_epochs=1"] if subcommand == "fit" else []
        main([subcommand, *tiny(Path(config).stem, "", **short), *epochs, *words])
        if config.endswith("_rollouts.yaml"):
            assert [len(row["answers"]) for row in read_records(runs / "rollouts")] == [2] * 6
            as_if_answered(runs / "rollouts")
        if config.endswith("_refine.yaml"):
            as_if_accepted(runs / "refined")
    assert len(list((runs / "teacher_logits").glob("*.safetensors"))) == 6
    assert AutoModelForCausalLM.from_pretrained(runs / "student/export").config.hidden_size == 16
    assert (runs / "student/export/adapter/adapter_model.safetensors").is_file()
    assert (runs / "student/summary.md").is_file()


@pytest.mark.parametrize("name", ["gsm8k", "official"])
def test_gsm8k(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "base", causal(max_position_embeddings=4096))
    rows = [{"question": f"{i} and 1?", "answer": f"{i}+1\n#### {i + 1}"} for i in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = Path("runs/ssb") / name
    main(["predict", *tiny(f"{name}_rollouts", path, root=str(tmp_path))])
    as_if_answered(runs / "rollouts")
    main(["predict", *tiny(f"{name}_refine", path)])
    as_if_accepted(runs / "refined")
    main(["predict", *tiny(f"{name}_teacher_logits", path)])
    main(["fit", *tiny(f"{name}_student", path, batch_size=2), "--trainer.max_epochs=1"])
    assert (runs / "student/export/model.safetensors").is_file()
    if name == "gsm8k":
        (tmp_path / "test.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
        main(["test", *tiny("evaluate", path, root=str(tmp_path))])


def test_presets_are_the_published_settings_and_ours() -> None:
    official, ours = (
        {
            stage: yaml.safe_load((ROOT / "configs/ssb" / f"{name}_{stage}.yaml").read_text())
            for stage in ("rollouts", "refine", "teacher_logits", "student")
        }
        for name in ("official", "gsm8k")
    )
    assert official["rollouts"]["model"]["init_args"]["sampling"]["samples"] == 4
    assert official["refine"]["data"]["init_args"]["match"] == "exact"
    assert official["teacher_logits"]["model"]["init_args"]["top_k"] == 151936
    pairs = official["student"]["data"]["init_args"]
    assert pairs["student_prompt"] == "flat" and not pairs["include_eos"] and pairs["batch_size"] == 4
    for preset in (official, ours):
        student = preset["student"]["model"]["init_args"]
        assert student["temperature"] == preset["teacher_logits"]["model"]["init_args"]["temperature"] == 2.0
        assert student["network"]["init_args"]["lora"]["r"] == 32 and student["lr"] == 2e-4
        for stage in ("refine", "teacher_logits"):
            assert preset[stage]["data"]["init_args"]
    for key in ("student_prompt", "include_eos"):
        assert official["teacher_logits"]["data"]["init_args"][key] == pairs[key]
        assert key not in ours["student"]["data"]["init_args"]
