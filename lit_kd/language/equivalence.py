r"""Are two LaTeX formulas the same? math-verify's word on it, in a process of its own.

math-verify bounds its time by signals, which work in a main thread only and give other answers elsewhere
(Math-Verify#22, #50, #55). Here it runs without them in one helper process, whose watchdog ends it when a pair takes
too long, even inside a C function; the next pair starts a new one. That holds in threads and in workers, daemons too.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import threading
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, Literal

Verdict = Literal["equal", "different", "undecided", "unreadable gold"]

SECONDS = 5.0  # for a pair
LONGEST = 1000  # characters of a formula that math-verify is given: its expressions take quadratic time and more


@lru_cache(maxsize=4096)
def compare_formulas(prediction: str, gold: str, seconds: float = SECONDS) -> Verdict:
    r"""Compare by math-verify, the gold first: it reads relations of the two sides differently.

    Args:
        prediction: LaTeX without a box or dollar signs around it.
        gold: likewise.
        seconds: after which the pair is "undecided", as it is after an exception in math-verify, or if a text is too
            long for it.

    Raises:
        ModuleNotFoundError: math-verify is not installed.
    """
    require_math_verify()
    if max(len(prediction), len(gold)) > LONGEST:
        return "undecided"
    return _helper(os.getpid()).ask(prediction, gold, seconds)


def require_math_verify() -> None:
    """Raise the sentence that says how to install math-verify, if it is not."""
    if find_spec("math_verify") is None:
        raise ModuleNotFoundError("kind='math' needs math-verify: pip install 'lit-kd[llm]'.")


@cache
def _helper(pid: int) -> _Helper:
    """One a process: a fork must not share its parent's pipes."""
    return _Helper()


class _Helper:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, prediction: str, gold: str, seconds: float) -> Verdict:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = _start()
            assert self._process.stdin and self._process.stdout  # for mypy
            try:
                print(json.dumps([prediction, gold, seconds]), file=self._process.stdin, flush=True)
                answer = self._process.stdout.readline()
            except BrokenPipeError:
                answer = ""
            if not answer:  # the watchdog has ended it
                self._process.wait()
                return "undecided"
            return json.loads(answer)


def _start() -> subprocess.Popen[str]:
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", "from lit_kd.language.equivalence import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def serve() -> None:
    """The helper's loop: a pair a line in, a verdict a line out, until the input ends."""
    import math_verify  # noqa: F401  # before the watchdog is set: on a busy machine it takes seconds

    answers, sys.stdout = sys.stdout, sys.stderr  # what else is printed must not be taken for an answer
    for line in sys.stdin:
        prediction, gold, seconds = json.loads(line)
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            verdict = _compare(prediction, gold)
        except Exception:
            verdict = "undecided"
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(verdict), file=answers, flush=True)


def _compare(prediction: str, gold: str) -> Verdict:
    from math_verify import LatexExtractionConfig, parse, verify

    def read(formula: str) -> list[Any]:
        # Only what stands in the box: by default, any number in a box that it can't read would do.
        return parse(
            rf"\boxed{{{formula}}}",
            extraction_config=[LatexExtractionConfig(boxed_match_priority=0)],
            extraction_mode="first_match",
            parsing_timeout=None,
            raise_on_error=True,
        )

    if not (expected := read(gold)):
        return "unreadable gold"
    equal = verify(expected, read(prediction), timeout_seconds=None, raise_on_error=True)
    return "equal" if equal else "different"
