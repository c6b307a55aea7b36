"""The examples run as a reader starts them, outside of the repository, and show what they say."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_toy import hub
from huggingface_hub import ModelCard
from transformers import AutoModel

EXAMPLES = Path(__file__).parents[1] / "examples"
PACKAGE = EXAMPLES.parent


def start(words: list[str], folder: Path, **variables: str) -> str:
    """What a new Python prints in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONWARNINGS": "ignore", **variables}
    words = [sys.executable, *words]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    return result.stdout


def percents(text: str) -> dict[str, float]:
    """Numbers by the names in front of them."""
    return {name.strip(): float(number) for name, number in re.findall(r"^([\w\- ]+?) +([\d.]+) %", text, re.MULTILINE)}


@pytest.mark.slow
def test_plain_loop_needs_no_lightning(tmp_path: Path) -> None:
    """With the teacher 5 to 9 points more than alone (three seeds)."""
    path = str(EXAMPLES / "plain_loop.py")
    code = f"import runpy, sys; runpy.run_path({path!r}, run_name='__main__'); print('lightning' in sys.modules)"
    output = start(["-c", code], tmp_path)
    found = percents(output)
    assert found["teacher"] > 85 and found["distilled"] > found["alone"] + 1
    assert output.splitlines()[-1] == "False"


@pytest.mark.slow
def test_hardened_network_fools_naive_attacks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["harden_and_attack.py", "--folder", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "harden_and_attack.py"), run_name="__main__")
    networks = json.loads((tmp_path / "robustness.json").read_text())["networks"]
    module, undefended = networks["module"], networks["undefended"]
    naive = [one["rows"]["pgd_naive"]["accuracy"] for one in (module, undefended)]
    assert naive[0] > naive[1] + 0.2
    worst = [one["headline"]["robust_accuracy"]["accuracy"] for one in (module, undefended)]
    assert module["clean"]["accuracy"] > 0.75 and max(worst) < 0.4
    assert module["rows"]["cw"]["success_rate"] > 0.9
    assert "adaptive_stronger_than_naive" in module["flags"]
    assert (tmp_path / "robustness.png").is_file() and "| pgd_naive" in (tmp_path / "robustness.md").read_text()


@pytest.mark.slow
def test_encoder_is_distilled_and_pushed(tmp_path: Path) -> None:
    """The upload is huggingface_hub's own, to a stand-in for the hub; 2.3 nats before, 0.2 after."""
    with hub() as server:
        settings = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_swordfish", "HF_HUB_OFFLINE": "0"}
        words = [str(EXAMPLES / "hugging_face.py"), "--license", "mit", "--push_to", "me/mine"]
        output = start(words, tmp_path, **settings)
    before, after = map(float, re.findall(r"([\d.]+) (?:before|after)", output))
    assert after < 0.5 * before
    assert server.created == [{"name": "mine", "organization": "me", "visibility": "private"}]
    assert server.tokens == {"Bearer hf_swordfish"}
    assert server.files.keys() >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    folder = tmp_path / "from_the_hub"
    folder.mkdir()
    for name, content in server.files.items():
        assert b"swordfish" not in content and str(tmp_path).encode() not in content, name
        (folder / name).write_bytes(content)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("mit", "feature-extraction")
    assert "arxiv:2012.15828" in card.data.tags
    assert AutoModel.from_pretrained(folder).config.hidden_size == 48


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The own project, copied to where no lit_kd lies beside it."""
    return Path(shutil.copytree(EXAMPLES / "own_project", tmp_path / "project"))


@pytest.mark.slow
def test_own_project(project: Path) -> None:
    """Distilled 8 to 11 points above alone (three seeds), OBoW 4.5 above a random network (one seed)."""
    found = percents(start(["main.py"], project))
    assert found["MCMI teacher"] > 90 and found["student distilled"] > found["student alone"] + 2
    assert found["k-NN after OBoW"] > found["k-NN of a random network"]
    for name, method in (("mcmi", "MCMIDistill"), ("obow", "OBoWModule")):
        card = ModelCard.load(project / "export" / name / "README.md")
        assert method in card.data.tags and "Data: Digits." in card.text


@pytest.mark.slow
def test_own_project_by_the_command_line(project: Path) -> None:
    """Class paths of the folder are found."""
    quick = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.accelerator cpu"
    fit = f"fit -c obow.yaml {quick}".split()
    test = [
        "test",
        "-c",
        "obow.yaml",
        "--ckpt_path",
        "runs/digits/obow/checkpoints/last.ckpt",
        "--trainer.accelerator",
        "cpu",
    ]
    output = start(["-c", f"from lit_kd.cli import main; main({fit}); main({test})"], project)
    assert "test/knn20_t0.07_student_acc" in output
    assert (project / "runs/digits/obow/export/README.md").is_file()
