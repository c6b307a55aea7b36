"""The honest evaluation of a classifier: which attacks are run, and what is recorded of each sample.

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
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lit_kd.attacks.apgd import apgd
from lit_kd.attacks.carlini_wagner import carlini_wagner
from lit_kd.attacks.common import AttackResult, Norm, attack_mode, direction, margin, run_attack
from lit_kd.attacks.fgsm import fgsm
from lit_kd.attacks.libraries import TorchAttack, autoattack
from lit_kd.attacks.pgd import pgd

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
        """Check the names of the attacks."""
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
        reasons["autoattack"] = "AutoAttack needs pyautoattack: pip install 'lit-kd[attacks]'"
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


# Records: for each sample of a chunk "<row>/<field>", from which every number of a report follows

Records = dict[str, Tensor]


def evaluate_chunk(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    index: Tensor,
    suite: Suite,
    protocol: Protocol,
    gallery: Sequence[str] = (),
) -> Records:
    """Run a suite on some samples.

    Args:
        model: from images in [0, 1] to logits.
        image: (B, C, H, W) in [0, 1].
        label: (B,) int64.
        index: (B,) int64, the samples' names: they seed random numbers.
        suite: from :func:`build_suite`.
        protocol: its protocol.
        gallery: rows whose adversarial images are kept as well, under ``<row>/image``.

    Returns:
        (B,) tensors on the CPU. ``index``, ``label``, ``clean/correct``, ``clean/top5``, ``clean/spread`` (largest
        difference between five forward passes over the largest logit), ``worst/robust`` (no attack that kept to the
        ball has fooled the network), and for each row: ``attacked``, ``robust`` (correct, and still correct after the
        attack), ``top5`` likewise, ``rounded`` (``robust`` after rounding to 8 bits), ``repeated`` (a second forward
        pass gave the same verdict), ``l2``, ``linf``, ``zero_gradient``, ``queries``, ``margin``.
    """
    with attack_mode(model), torch.no_grad():
        image, label = image.clone(), label.clone()
        passes = torch.stack([model(image).float() for _ in range(5)])
    logits = passes[0]
    correct = logits.argmax(1) == label
    spread = (passes - logits).abs().amax((0, 2)) / logits.abs().amax(1).clamp(min=1e-12)
    worst = correct.clone()
    records = {
        "index": index,
        "label": label,
        "clean/correct": correct,
        "clean/top5": _in_top5(logits, label),
        "clean/spread": spread,
    }
    for entry in suite.entries:
        rows = (worst if entry.survivors_only else correct).nonzero().squeeze(1)
        result = entry(model, image[rows], label[rows], index[rows.to(index.device)])
        after, rounded = _logits(model, result.adversarial), _logits(model, _to_8_bits(result.adversarial))
        robust = ~result.success
        distance = result.linf if protocol.norm == "linf" else result.l2
        worst[rows] &= robust | (distance > protocol.eps + 1e-6)
        found = {
            "robust": robust,
            "top5": _in_top5(after, label[rows]),
            "rounded": rounded.argmax(1) == label[rows],
            "repeated": (after.argmax(1) == label[rows]) == robust,
            "margin": margin(after, label[rows]),
            "l2": result.l2,
            "linf": result.linf,
            "zero_gradient": result.zero_gradient,
            "queries": result.queries,
            "attacked": torch.ones_like(robust),
        }
        for name, values in found.items():
            records[f"{entry.name}/{name}"] = values.new_zeros(len(image)).index_copy(0, rows, values)
        if entry.name in gallery:
            records[f"{entry.name}/image"] = image.index_copy(0, rows, result.adversarial)
    records["worst/robust"] = worst
    if gallery:
        records["clean/image"] = image
    return {name: values.detach().cpu().contiguous() for name, values in records.items()}


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    with attack_mode(model), torch.no_grad():
        return model(image).float() if len(image) else image.new_zeros(0, 5)


def _in_top5(logits: Tensor, label: Tensor) -> Tensor:
    return (logits.topk(min(5, logits.shape[1]), dim=1).indices == label[:, None]).any(1)


def _to_8_bits(image: Tensor) -> Tensor:
    return (image * 255).round() / 255


def join_records(parts: Iterable[Records]) -> Records:
    """Chunks as one, sorted by ``index``; pictures of the first chunk only."""
    chunks = sorted(parts, key=lambda part: int(part["index"].min()))
    names = [name for name in chunks[0] if not name.endswith("/image")]
    joined = {name: torch.cat([chunk[name] for chunk in chunks]) for name in names}
    order = joined["index"].argsort()
    pictures = {name: values for name, values in chunks[0].items() if name.endswith("/image")}
    return {**{name: values[order] for name, values in joined.items()}, **pictures}
