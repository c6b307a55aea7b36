"""math-verify in a process of its own: bounded, and the same from wherever it is asked."""

import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lit_kd.language.equivalence import compare_formulas

pytest.importorskip("math_verify")

PAIRS = [("x + 1", "1 + x", "equal"), ("x", "y", "different"), ("(x+1)^2", "x^2+2x+1", "equal")]


def ask(pair: tuple[str, str, str]) -> str:
    return compare_formulas.__wrapped__(*pair[:2])  # not from the cache


@pytest.mark.parametrize("pair", PAIRS)
def test_verdicts(pair: tuple[str, str, str]) -> None:
    assert ask(pair) == pair[2]


def test_only_the_box_is_read() -> None:
    assert compare_formulas("garbage 12", "12") == "different"
    assert compare_formulas(r"\frac{12", "12") == "different"
    assert compare_formulas("x", " ") == "unreadable gold"


def test_threads_get_the_same_verdicts() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, PAIRS * 20)) == [pair[2] for pair in PAIRS * 20]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_daemonic_workers_get_the_same_verdicts(method: str) -> None:
    ask(PAIRS[0])  # a forked worker inherits a running helper, which is not its own
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(ask, PAIRS * 4) == [pair[2] for pair in PAIRS * 4]


def test_endless_pairs_are_undecided_and_the_next_is_answered() -> None:
    start = time.perf_counter()
    assert compare_formulas("9^{9^9}", "2x", seconds=1) == "undecided"  # one call of a C function
    assert time.perf_counter() - start < 30
    assert ask(PAIRS[0]) == "equal"


def test_long_formulas_are_undecided() -> None:
    assert compare_formulas("x" * 10**5, "x") == "undecided"
