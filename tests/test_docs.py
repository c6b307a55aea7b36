"""What the README and the pages tell a reader to type works, and the reference has every public name."""

import argparse
import importlib
import re
import runpy
import shlex
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_commands import COMMANDS, MEASURED, PAGES, ROOT, SHELL, Command, unmarked

from lit_kd.cli import main

TEXT = "\n".join(page.read_text() for page in PAGES)
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHORT = (
    "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.enable_progress_bar false "
    "--trainer.enable_model_summary false"
)
ARITHMETIC = [command.text for page in ("ssb", "mgsr", "synthetic") for command in unmarked("arithmetic", f"{page}.md")]
PARSED = {command.text: command for command in COMMANDS if command.mark and command.words[0] in ("lit-kd", "python")}
SCRIPTS = {command.text: command for command in [*PARSED.values(), *MEASURED] if command.text.startswith("python -m")}


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_python_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README", "exec"), {"__name__": "readme"})


def test_every_command_is_run_or_marked() -> None:
    run = {command.text for command in unmarked("^lit-kd .*/digits")} | set(ARITHMETIC)
    for command in COMMANDS:
        known = command.mark or command.text in run or SHELL.fullmatch(command.text) or is_help(command)
        assert known, f"{command.page}: {command.text!r} is run by no test: see tests/doc_commands.py for the marks."
    assert len(run) > 30 and len(PARSED) > 50 and len(MEASURED) > 15


def test_extras_that_are_installed_exist() -> None:
    extras = set(metadata("lit-kd").get_all("Provides-Extra"))
    asked = {name for command in COMMANDS for name in ",".join(re.findall(r"'\.\[(.+)\]'", command.text)).split(",")}
    assert asked - {""} and asked - {""} <= extras


def is_help(command: Command) -> bool:
    return "--print_config" in command.text or "--model.help" in command.text


@pytest.mark.slow
def test_commands_on_digits_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps each; the name of the checkpoint is that of the whole run, so it is checked against the config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    student = yaml.safe_load((ROOT / "configs/mcmi/digits_student.yaml").read_text())
    epochs, samples = student["trainer"]["max_epochs"], student["data"]["init_args"]["samples_per_epoch"]
    whole_run = f"epoch={epochs - 1}-step={epochs * samples // 64}.ckpt"
    lines = [command.text for command in unmarked("^lit-kd .*/digits") if not is_help(command)]
    assert sum(whole_run in line for line in lines) == 2
    for line in lines:
        words = line.removeprefix("lit-kd ").replace(whole_run, "epoch=0-step=2.ckpt")
        main(shlex.split(f"{words} {SHORT}"))
    for run in (
        "digits/teacher",
        "digits/mcmi_teacher",
        "digits/student",
        "digits/omitted",
        "digits_defensive/student",
    ):
        assert (tmp_path / "runs" / run / "export" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "digits_defensive" / "student" / "robustness.png").is_file()


@pytest.mark.parametrize("text", sorted(text for text in PARSED if text not in SCRIPTS))
def test_marked_commands_name_files_and_options_that_exist(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*PARSED[text].words[1:], "--print_config"])
    assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("text", [command.text for command in COMMANDS if is_help(command)])
def test_help(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(Command("", text).words[1:])
    assert stop.value.code == 0 and "student" in capsys.readouterr().out


@pytest.mark.parametrize("text", sorted(SCRIPTS))
def test_options_of_scripts_exist(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_only(parser: argparse.ArgumentParser, *args: Any, **settings: Any) -> tuple[Any, list[str]]:
        found, unknown = parse(parser, *args, **settings)
        if unknown:
            return found, unknown  # which parse_args refuses
        raise SystemExit("parsed")

    parse = argparse.ArgumentParser.parse_known_args
    _, _, module, *words = SCRIPTS[text].words
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit, match="parsed"):
        runpy.run_module(module, run_name="__main__")


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
