"""What is measured of every method: the cases of ``benchmarks.all``, and their measurement in a process."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import image_steps, language_steps, text_steps
from benchmarks.steps import BARE, OURS, Size, Variant, distance
from benchmarks.timing import alternate, compared, peak_memory, quiet, spread
from lit_kd.objectives import CRD, ReviewKD


@dataclass(frozen=True)
class Case:
    """What is measured: variants of which the last one is ours and ratios are to the first; at most what ratio."""

    variants: Callable[[Size], dict[str, Variant]]
    aim: float = 1.05


CASES = {
    "Classifier": Case(image_steps.classifier),
    "MCMITeacher": Case(image_steps.mcmi_teacher),
    "MCMIDistill": Case(image_steps.hinton),
    "MCMIDistill with CRD": Case(partial(image_steps.beside_kd, objective=CRD), 1.5),
    "MCMIDistill with ReviewKD": Case(partial(image_steps.beside_kd, objective=ReviewKD), 1.3),
    "DefensiveDistill": Case(image_steps.defensive),
    "PGD": Case(image_steps.attack),
    "OBoWModule": Case(image_steps.obow),
    "OBoWModule with views": Case(image_steps.obow_views, 0.8),
    "LinearEvaluation": Case(image_steps.linear_evaluation),
    "MiniLMDistill minilm": Case(partial(text_steps.minilm, relations="minilm"), 0.7),
    "MiniLMDistill minilm_v2": Case(partial(text_steps.minilm, relations="minilm_v2"), 0.7),
    "SequenceClassifier": Case(text_steps.sequence_classifier),
    "QuestionAnswering": Case(text_steps.question_answering),
    "LanguageModel": Case(language_steps.language_model),
    "SSBDistill": Case(language_steps.ssb),
    "SyntheticDistill packed": Case(language_steps.synthetic),
    "MGSRDistill": Case(language_steps.mgsr),
    "MGSRDistill writing": Case(language_steps.written),
    "MGSRDistill replaying": Case(language_steps.replayed),
    "Rollouts": Case(language_steps.writing),
}


def times(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each variant, and of ours how far it ends from the bare loop."""
    quiet(args.threads)
    apart, rounds, data = None, [], []
    with tempfile.TemporaryDirectory() as folder:
        variants = CASES[name].variants(Size(args.quick, args.steps, args.device, Path(folder)))
        for found in alternate(variants, args.rounds):
            if BARE in found:
                apart = distance(found[OURS].change, found[BARE].change)
            rounds.append({variant: one.times[0] for variant, one in found.items()})
            data.append(float(found[OURS].times[1, 0]))
    step = compared(rounds)[OURS]
    seconds = [{variant: pair.tolist() for variant, pair in one.items()} for one in rounds]  # wall, CPU
    return {"base": next(iter(variants)), **step._asdict(), "data": spread(data), "apart": apart, "rounds": seconds}


def memory(name: str, variant: str, args: argparse.Namespace) -> float:
    """MiB that a short round of a variant needs."""
    quiet(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        size = Size(args.quick, 1, args.device, Path(folder), compares=False)
        return peak_memory(CASES[name].variants(size)[variant])
