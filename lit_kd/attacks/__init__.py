"""Attacks as functions ``(model, image, label, **settings) -> AttackResult``, and the honest evaluation.

Pixels in, pixels out: images lie in [0, 1], a network normalises its own input, budgets are in pixel units.
"""

from lit_kd.attacks.apgd import apgd
from lit_kd.attacks.carlini_wagner import carlini_wagner
from lit_kd.attacks.common import AttackResult, attack_mode
from lit_kd.attacks.evaluate import evaluate_chunk, join_records
from lit_kd.attacks.fgsm import fgsm
from lit_kd.attacks.libraries import TorchAttack, autoattack
from lit_kd.attacks.pgd import pgd
from lit_kd.attacks.report import summarize
from lit_kd.attacks.suite import Protocol, build_suite

__all__ = [
    "AttackResult",
    "Protocol",
    "TorchAttack",
    "apgd",
    "attack_mode",
    "autoattack",
    "build_suite",
    "carlini_wagner",
    "evaluate_chunk",
    "fgsm",
    "join_records",
    "pgd",
    "summarize",
]
