"""The student configs of distillation through synthetic data, each on a tiny network."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_toy import causal, saved

from lit_kd.cli import main
from lit_kd.language.records import Records

CONFIGS = Path(__file__).parents[2] / "configs/synthetic"
TINY = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def student(name: str, path: str) -> dict[str, Any]:
    """The config with a tiny network, on one device."""
    config = yaml.safe_load((CONFIGS / f"{name}_student.yaml").read_text())
    config["model"]["init_args"]["network"]["init_args"].update(path=path, dtype="float32")
    config["data"]["init_args"].update(tokenizer=path, val_fraction=0.2)
    for key in ("precision", "strategy", "devices"):
        config["trainer"].pop(key, None)
    return config


def write_rows(folder: Path) -> None:
    roles = ("system", "user", "assistant")
    Records(folder, {"stage": "Synthesis"}).append(
        {
            "index": i,
            "messages": [{"role": r, "content": c} for r, c in zip(roles, ("s", f"{i} + 1?", f"{i + 1}"), strict=True)],
            "reason": None if i else "no answer",
        }
        for i in range(11)
    )


@pytest.mark.parametrize("name", ["llama_gsm8k", "arithmetic"])
def test_student(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "base", causal(max_position_embeddings=4096))
    config = student(name, path)
    write_rows(Path(config["data"]["init_args"]["chats"]))
    Path("student.yaml").write_text(yaml.safe_dump(config))
    words = ["fit", "-c", "student.yaml", *TINY, "--trainer.max_epochs=1"]
    main(words)
    folder = Path(config["trainer"]["logger"]["init_args"]["save_dir"], name.split("_")[-1], "student")
    assert (folder / "export/model.safetensors").is_file() and (folder / "summary.md").is_file()
    assert (folder / "export/adapter/adapter_model.safetensors").is_file()
    if name == "arithmetic":
        teacher = ["--model.init_args.kd_weight=1", "--model.init_args.teacher=lit_kd.models.causal_lm"]
        main([*words, *teacher, f"--model.init_args.teacher.init_args.path={path}"])


def test_presets_are_the_shipped_recipe() -> None:
    config = yaml.safe_load((CONFIGS / "llama_gsm8k_student.yaml").read_text())
    model = config["model"]["init_args"]
    lora = model["network"]["init_args"]["lora"]
    assert (lora["r"], lora["lora_alpha"], lora["lora_dropout"], model["lr"]) == (8, 128, 0.0, 3e-4)
    assert config["trainer"]["strategy"]["class_path"].endswith("ModelParallelStrategy")
    assert config["trainer"]["gradient_clip_val"] == 1.0 and config["trainer"]["max_epochs"] == 1
    assert "warmup" not in model and "optimizer" not in json.dumps(config)
