"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

from lit_kd import losses

MODULES = [module.name for module in pkgutil.iter_modules(losses.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"lit_kd.losses.{name}")).failed == 0


def test_every_public_function_has_an_example() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    public = {name: value for name in losses.__all__ if callable(value := getattr(losses, name))}
    without = {name for name, value in public.items() if not any(test.examples for test in finder.find(value))}
    parts = {"AttentionFusion", "Clip", "ContrastMemory", "DACTerms"}  # of ReviewFusion, dac_kl and CRDLoss
    assert without == parts
