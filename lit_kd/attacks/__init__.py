"""Attacks as functions ``(model, image, label, **settings) -> AttackResult``, and the honest evaluator.

Pixels in, pixels out: images lie in [0, 1], a network normalises its own input, budgets are in pixel units.
"""

from lit_kd.attacks.common import AttackResult, attack_mode
from lit_kd.attacks.fgsm import fgsm
from lit_kd.attacks.pgd import pgd

__all__ = ["AttackResult", "attack_mode", "fgsm", "pgd"]
