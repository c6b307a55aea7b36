"""What the README and the pages tell a reader to type works, and the reference has every public name."""

import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

from lit_kd.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for line in re.findall(r"^lit-kd .*$", TEXT, re.MULTILINE)]
DIGITS = [line for line in COMMANDS if "/digits" in line]
QUICK = "--trainer.enable_progress_bar false --trainer.enable_model_summary false"


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README", "exec"), {"__name__": "readme"})


@pytest.mark.slow
def test_the_readmes_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps each; the name of the checkpoint is that of the whole run, so it is checked against the config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    student = yaml.safe_load((ROOT / "configs/mcmi/digits_student.yaml").read_text())
    epochs, samples = student["trainer"]["max_epochs"], student["data"]["init_args"]["samples_per_epoch"]
    whole_run = f"epoch={epochs - 1}-step={epochs * samples // 64}.ckpt"
    lines = [line for line in DIGITS if line in PAGES[0].read_text()]
    assert sum(whole_run in line for line in lines) == 2
    for line in dict.fromkeys(lines):
        words = f"{line.removeprefix('lit-kd ').replace(whole_run, 'epoch=0-step=2.ckpt')} {QUICK}"
        main(shlex.split(f"{words} --trainer.max_epochs 1 --trainer.limit_train_batches 2"))
    for run in ("digits/teacher", "digits/mcmi_teacher", "digits/student", "digits_defensive/student"):
        assert (tmp_path / "runs" / run / "export" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "digits_defensive" / "student" / "robustness.png").is_file()


@pytest.mark.parametrize("line", sorted({line for line in COMMANDS if " -c " in line} - set(DIGITS)))
def test_other_commands_name_files_and_options_that_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(line)[1:]]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


def test_the_example_of_reuse_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "reuse.py"), run_name="__main__")
    accuracy = re.search(r"test/acc\W+([\d.]+)", capsys.readouterr().out)
    assert accuracy is not None
    assert float(accuracy[1]) > 0.7


PACKAGES = ["attacks", "callbacks", "datamodules", "language.engines", "losses", "methods", "models", "objectives"]


@pytest.mark.parametrize("module", ["lit_kd", *(f"lit_kd.{name}" for name in PACKAGES)])
def test_every_public_name_has_a_docstring_and_a_place_in_the_reference(module: str) -> None:
    owner = importlib.import_module(module)
    own = [name for name, value in vars(owner).items() if getattr(value, "__module__", None) == owner.__name__]
    public = {name for name in getattr(owner, "__all__", own) if not name.startswith("_")}
    told = {name.rpartition(".")[2] for name in re.findall(r"^::: ([\w.]+)$", TEXT, re.MULTILINE)}
    assert len(public) > 5 and public <= told, f"not in docs/reference: {sorted(public - told)}"
    bare = {name for name in public if callable(getattr(owner, name)) and not getattr(owner, name).__doc__}
    assert not bare, f"without a docstring: {sorted(bare)}"


def test_pictures_are_those_of_their_script() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    for draw in script["PICTURES"]:
        assert draw().svg() == (ROOT / "docs" / "pictures" / f"{draw.__name__}.svg").read_text()
        assert f"(pictures/{draw.__name__}.svg)" in (ROOT / "docs" / f"{draw.__name__}.md").read_text()
    picture = script["Picture"]("bad", 200, 100)
    picture.box(20, 20, "one", "data")
    with pytest.raises(ValueError, match="touches 'one'"):
        picture.arrow((4, 30), (190, 30))
    with pytest.raises(ValueError, match="needs more than 50 pixels"):
        picture.box(20, 20, "too long a text", "data", width=50)


def test_links_point_at_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
