import ast
import doctest
import importlib
import inspect
import pkgutil
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lit_kd

PACKAGE = Path(lit_kd.__file__).parent
# Imports go down this list only.
LAYERS = [
    "cli",
    "glue",
    "methods",
    "objectives",
    "callbacks",
    "datamodules",
    "attacks",
    "language",
    "models",
    "losses",
    "intervals",
    "files",
    "processes",
    "checks",
]
MODULES = [name for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "lit_kd.") if name != "lit_kd.__main__"]


def layer(module: str) -> int | None:
    parts = module.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[1] in LAYERS else None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = layer("lit_kd." + path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."))
    if own is None:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            target = layer(name) if name.startswith("lit_kd") else None
            assert target is None or target >= own, f"{path.name} imports {name} upwards"


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("lit_kd.losses")])
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_public_names_are_lazy_and_all_there() -> None:
    assert all(getattr(lit_kd, name) is not None for name in lit_kd.__all__)
    with pytest.raises(AttributeError, match="no attribute 'MCMIDistil'"):
        lit_kd.MCMIDistil  # noqa: B018


PACKAGES = ["attacks", "callbacks", "datamodules", "language.engines", "losses", "methods", "models", "objectives"]
PUBLIC = {
    f"{module}.{name}": getattr(importlib.import_module(module), name)
    for module in ("lit_kd", *(f"lit_kd.{part}" for part in PACKAGES))
    for name in importlib.import_module(module).__all__
}


def docstring(owner: Any) -> str:
    return f"{inspect.getdoc(owner)}\n{inspect.getdoc(owner.__init__) if inspect.isclass(owner) else ''}"


def described(owner: Any) -> set[str]:
    """Names at the start of a line before a colon, or in double backticks, of a docstring and of those it sends to."""
    text = docstring(owner)
    for target in re.findall(r"see :\w+:`([\w.]+)`", text):
        text += docstring(pydoc.locate(target) or vars(inspect.getmodule(owner)).get(target))
    return set(re.findall(r"^ *\**(\w+):", text, re.MULTILINE)) | set(re.findall(r"``(\w+)``", text))


def test_every_argument_of_a_public_name_is_described() -> None:
    gaps = {}
    for name, owner in PUBLIC.items():
        if callable(owner):
            arguments = inspect.signature(owner).parameters.values()
            gaps[name] = {one.name for one in arguments if one.kind != one.VAR_KEYWORD} - described(owner)
    assert len(gaps) > 150 and not {name: missing for name, missing in gaps.items() if missing}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import lit_kd", {"torch", "timm", "transformers", "torchattacks", "lightning"}),
        ("import lit_kd.losses", {"timm", "transformers", "lightning"}),
        ("import sys; sys.argv = ['lit-kd', '--help']; import lit_kd.cli as c\ntry: c.main()\nexcept SystemExit: pass",
         {"transformers", "torchattacks", "datasets", "pytorch_grad_cam", "sklearn"}),
    ],
)  # fmt: skip
def test_light_imports(code: str, absent: set[str]) -> None:
    check = f"{code}\nimport sys; print('FOUND', sorted({absent!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=300, check=True)
    assert result.stdout.splitlines()[-1] == "FOUND []"
