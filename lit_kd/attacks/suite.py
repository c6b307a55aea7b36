"""Which attacks the honest evaluation of a classifier runs, and why.

Naive attacks differentiate the cross-entropy of the deployed network. Where its softmax saturates that gradient is 0
and the attack fails, but the network is not robust ("gradient masking", Athalye et al., arXiv:1802.00420). So beside
them stand attacks that no scale of the logits can fool (margin, DLR, logits / T), transfer from other networks, a
minimal-norm attack and AutoAttack; the verdict on a sample is that of the worst of them. See Carlini et al., "On
evaluating adversarial robustness", arXiv:1902.06705.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lit_kd.attacks.apgd import apgd
from lit_kd.attacks.carlini_wagner import carlini_wagner
from lit_kd.attacks.common import AttackResult, run_attack
from lit_kd.attacks.fgsm import fgsm
from lit_kd.attacks.geometry import Norm, direction
from lit_kd.attacks.libraries import TorchAttack, autoattack
from lit_kd.attacks.pgd import pgd
from lit_kd.checks import check_choice, check_list, check_not_negative, check_positive, check_whole

Kind = Literal["diagnostic", "naive", "adaptive", "transfer", "minimal_norm", "library"]
ATTACKS = (
    "noise",
    "fgsm_naive",
    "pgd_naive",
    "fgsm_T",
    "pgd_T",
    "pgd_margin",
    "apgd_dlr",
    "doubled_steps",
    "transfer",
    "cw",
    "autoattack",
)
SWEPT = ("fgsm_naive", "pgd_naive", "pgd_margin")


@dataclass(frozen=True)
class Protocol:
    """Threat model and effort of an evaluation.

    Attributes:
        eps: radius of the ball of the headline, in pixel units.
        norm: ``linf`` or ``l2``.
        eps_grid: further radii for the curves of accuracy over eps; 1 is the sanity check "everything is allowed".
        steps: of PGD and APGD.
        restarts: of PGD and APGD.
        temperature: at which the network was trained. The attacks ``fgsm_T`` and ``pgd_T`` divide its logits by it.
            None: 1; in a :class:`lit_kd.callbacks.RobustnessReport` the module's own.
        attacks: names out of ``ATTACKS``.
        survivors_only: AutoAttack and attacks of torchattacks run only where every attack before has failed, so their
            accuracy is that of the worst case so far. False: on all samples, to be compared with other reports.
        cw: settings of :func:`lit_kd.attacks.carlini_wagner`.
        seed: of all random numbers.
    """

    eps: float = 8 / 255
    norm: Norm = "linf"
    eps_grid: tuple[float, ...] = (1 / 255, 2 / 255, 4 / 255, 16 / 255, 1.0)
    steps: int = 40
    restarts: int = 1
    temperature: float | None = None
    attacks: tuple[str, ...] = ATTACKS
    survivors_only: bool = True
    cw: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings, as far as they can be without images."""
        check_not_negative(eps=self.eps)
        check_choice(get_args(Norm), norm=self.norm)
        for radius in self.eps_grid:
            check_not_negative(eps_grid=radius)
        check_whole(restarts=self.restarts)
        check_whole(0, steps=self.steps, seed=self.seed)
        check_positive(temperature=1.0 if self.temperature is None else self.temperature)
        check_list(attacks=self.attacks)
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown:
            raise ValueError(f"attacks={unknown} do not exist; choose from {', '.join(ATTACKS)}.")


@dataclass(frozen=True)
class SuiteEntry:
    """One attack of a suite.

    Attributes:
        name: its row in the report.
        kind: rows of kind ``naive`` and ``diagnostic`` never make a headline.
        attack: ``(model, image, label, **settings) -> AttackResult``.
        settings: of the attack.
        survivors_only: run only where every entry before has failed.
        caveat: where its result is not what its name says.
    """

    name: str
    kind: Kind
    attack: Callable[..., AttackResult]
    settings: Mapping[str, Any]
    survivors_only: bool = False
    caveat: str | None = None

    def __call__(self, model: nn.Module, image: Tensor, label: Tensor, index: Tensor) -> AttackResult:
        """Run it; ``index`` seeds attacks that draw random numbers for each sample."""
        seeded = {"index": index} if "index" in inspect.signature(self.attack).parameters else {}
        return self.attack(model, image, label, **self.settings, **seeded)


@dataclass(frozen=True)
class Suite:
    """The attacks of a protocol in the order in which they run, and why others were left out."""

    entries: Sequence[SuiteEntry]
    left_out: Mapping[str, str]


def build_suite(
    protocol: Protocol,
    num_classes: int,
    sources: Mapping[str, nn.Module] | None = None,
    library: Iterable[TorchAttack] = (),
) -> Suite:
    """The attacks of a protocol.

    Args:
        protocol: threat model and effort.
        num_classes: number of logits of the attacked network.
        sources: networks to transfer from, by name, e.g. ``undefended`` and ``teacher``.
        library: attacks of torchattacks, run last.
    """
    ball = {"eps": protocol.eps, "norm": protocol.norm, "seed": protocol.seed}
    walk = {**ball, "steps": protocol.steps, "restarts": protocol.restarts}
    sign, temperature, survivors = {"eps": protocol.eps}, protocol.temperature or 1.0, protocol.survivors_only
    by_gradient, without = {"attacks": ("apgd-ce", "apgd-t", "fab-t")}, {"attacks": ("square",)}
    groups: dict[str, list[SuiteEntry]] = {
        "noise": [SuiteEntry("noise", "diagnostic", noise, ball)],
        "fgsm_naive": [SuiteEntry("fgsm_naive", "naive", fgsm, sign)],
        "pgd_naive": [SuiteEntry("pgd_naive", "naive", pgd, walk)],
        "fgsm_T": [SuiteEntry("fgsm_T", "adaptive", fgsm, {**sign, "temperature": temperature})],
        "pgd_T": [SuiteEntry("pgd_T", "adaptive", pgd, {**walk, "temperature": temperature})],
        "pgd_margin": [SuiteEntry("pgd_margin", "adaptive", pgd, {**walk, "loss": "margin"})],
        "apgd_dlr": [SuiteEntry("apgd_dlr", "adaptive", apgd, {**walk, "loss": "dlr"})],
        "doubled_steps": [
            SuiteEntry("doubled_steps", "adaptive", pgd, {**walk, "loss": "margin", "steps": 2 * protocol.steps})
        ],
        "transfer": [
            SuiteEntry(f"transfer_{name}", "transfer", partial(transfer, source=source), walk)
            for name, source in (sources or {}).items()
        ],
        "cw": [SuiteEntry("cw", "minimal_norm", carlini_wagner, protocol.cw)],
        "autoattack": [
            SuiteEntry("autoattack", "adaptive", autoattack, {**ball, **by_gradient}, survivors),
            # Apart and last: where a search without gradients finds more than all the others, gradients were masked.
            SuiteEntry("autoattack_square", "adaptive", autoattack, {**ball, **without}, survivors_only=True),
        ],
    }
    left_out = {
        name: reason
        for name, reason in _reasons(protocol, temperature, num_classes, bool(sources)).items()
        if name in protocol.attacks
    }
    entries: list[SuiteEntry] = []
    for name in ATTACKS:  # whatever the order in the protocol: survivors come last
        if name in protocol.attacks and name not in left_out:
            entries += groups[name]
            if name in SWEPT:
                entries += [
                    replace(entry, name=f"{name}@{eps:.6g}", settings={**entry.settings, "eps": eps})
                    for entry in groups[name]
                    for eps in protocol.eps_grid
                    if eps != protocol.eps
                ]
    entries += [
        SuiteEntry(attack.name, "library", attack, {}, survivors_only=survivors, caveat=attack.caveat)
        for attack in library
    ]
    return Suite(entries, left_out)


def _reasons(protocol: Protocol, temperature: float, num_classes: int, has_sources: bool) -> dict[str, str]:
    """Why attacks can not be run, or say nothing new."""
    reasons: dict[str, str] = {}
    if protocol.norm != "linf":
        reasons |= dict.fromkeys(("fgsm_naive", "fgsm_T"), "FGSM is a step of the Linf ball")
    if temperature == 1:
        reasons |= dict.fromkeys(("fgsm_T", "pgd_T"), "trained at T = 1: the same as the naive attack")
    if num_classes < 3:
        reasons["apgd_dlr"] = "DLR needs 3 classes; the margin takes its place"
    if not has_sources:
        reasons["transfer"] = "no network to transfer from was given"
    if num_classes < 4:
        reasons["autoattack"] = "AutoAttack's targeted DLR needs 4 classes"
    elif find_spec("pyautoattack") is None:
        reasons["autoattack"] = "AutoAttack needs pyautoattack: pip install 'lit-kd[attacks]'."
    return reasons


def noise(
    model: nn.Module, image: Tensor, label: Tensor, *, eps: float, norm: Norm, seed: int, index: Tensor
) -> AttackResult:
    """A random corner of the Linf ball or a random point of the L2 sphere: what any attack must beat."""

    def search(image: Tensor, label: Tensor, target: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = tuple(image.shape[1:])
        # Three words of seed, of which random starts use the second for the restart: never the same stream.
        rows = [np.random.default_rng([seed, 2**31, i]).standard_normal(shape) for i in index.tolist()]
        normal = torch.from_numpy(np.stack(rows)).to(image)
        step = eps * direction(normal, norm)
        return (image + step).clamp(0, 1), torch.zeros_like(label, dtype=torch.bool), torch.zeros_like(label)

    return run_attack(search, model, image, label, None, index)


def transfer(
    model: nn.Module, image: Tensor, label: Tensor, *, source: nn.Module, index: Tensor, **settings: Any
) -> AttackResult:
    """Adversarial images that PGD on the margin made for another network, judged on this one."""
    made = pgd(source, image, label, loss="margin", index=index, **settings)

    def search(image: Tensor, label: Tensor, target: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return made.adversarial, torch.zeros_like(label, dtype=torch.bool), torch.zeros_like(label)

    return run_attack(search, model, image, label, None, index)
