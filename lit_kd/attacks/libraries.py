"""Attacks of other packages: AutoAttack from pyautoattack, and any attack of torchattacks.

Both packages draw random numbers for a whole batch, and reseed the global generators to do so. The latter is undone
here, but unlike ours their results depend on which samples share a batch.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lit_kd.attacks.common import AttackResult, check_budget, count_classes, run_attack
from lit_kd.attacks.geometry import Norm
from lit_kd.checks import check_whole

# AutoAttack

# Its parts, and the fewest classes for which they are defined
PARTS = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 2, "square": 2}


def autoattack(
    model: nn.Module,
    image: Tensor,
    label: Tensor,
    *,
    eps: float = 8 / 255,
    norm: Norm = "linf",
    attacks: Sequence[str] = ("apgd-ce", "apgd-t", "fab-t", "square"),
    seed: int = 0,
    batch_size: int | None = None,
) -> AttackResult:
    """AutoAttack (Croce and Hein, arXiv:2003.01690), the version ``standard`` of pyautoattack.

    100 steps of APGD on the cross-entropy, 100 steps each of APGD on the targeted DLR and of targeted FAB towards each
    of the 9 most likely classes (all, where there are fewer), and 5000 queries of Square. Each runs on the samples that
    those before have not fooled; where all fail the clean image is returned.

    pyautoattack does not say for which samples it asks: ``queries`` is the mean over a batch, rounded up. It includes
    some ten passes for its own checks, whose warnings go to the logger ``auto-attack``. ``zero_gradient`` is False.

    Args:
        model: from images in [0, 1] to logits.
        image: (B, C, H, W) float32 in [0, 1].
        label: (B,) int64.
        eps: radius of the ball in pixel units.
        norm: ``linf`` or ``l2``.
        attacks: of ``apgd-ce``, ``apgd-dlr``, ``apgd-t``, ``fab``, ``fab-t`` and ``square``, run in this order. What a
            search without gradients adds is seen by a second call, ``("square",)`` on the survivors of the others.
        seed: of the random numbers, in each batch anew.
        batch_size: most images in one forward pass; None: all.

    Raises:
        ModuleNotFoundError: pyautoattack is not installed.
        ValueError: see :func:`lit_kd.attacks.common.run_attack`; images that are not float32, an eps out of range, an
            unknown attack, fewer classes than an attack needs (4 for ``apgd-t``, 3 for ``apgd-dlr``).
    """
    try:
        ensemble_class = import_module("pyautoattack").AutoAttack
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("AutoAttack needs pyautoattack: pip install 'lit-kd[attacks]'.") from error
    check_budget(eps, norm, image)
    _check_float32(image, "pyautoattack")
    if not attacks or not set(attacks) <= PARTS.keys():
        raise ValueError(f"attacks={tuple(attacks)} must be some of {', '.join(PARTS)}.")

    def search(image: Tensor, label: Tensor, target: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        classes = count_classes(model, image)
        for name in attacks:
            if classes < PARTS[name]:
                raise ValueError(
                    f"AutoAttack's {name} needs {PARTS[name]} classes and the network has {classes}: leave it out, as "
                    "in attacks=('apgd-ce', 'fab-t', 'square')."
                )
        network = _Network(model, image)
        with _seeded(seed), _traced():
            ensemble = ensemble_class(
                network, device=image.device, eps=eps, norm={"linf": "Linf", "l2": "L2"}[norm], seed=seed
            )
            ensemble.attacks_to_run = list(attacks)
            ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = min(9, classes - 1)
            adversarial, _ = ensemble.run_standard_evaluation(image, label, batch_size=len(image))
        return adversarial, torch.zeros_like(label, dtype=torch.bool), network.queries(label)

    return run_attack(search, model, image, label, None, None, batch_size)


# torchattacks

CAVEATS = {
    "APGD": "10 steps unless told otherwise, the original takes 100",
    "APGDT": "10 steps unless told otherwise, the original takes 100; needs 4 classes",
    "AutoAttack": (
        "its APGD, APGD-T and FAB take 10 steps, the originals 100: not comparable with RobustBench, "
        "lit_kd.attacks.autoattack is; needs 4 classes"
    ),
    "CW": (
        "no search over c; masks logits by a product with the one-hot, so it fails where they are negative; can not "
        "move pixels that are 0 or 1; ignores kappa when it chooses the best image; stops by the loss of its batch"
    ),
    "EADEN": "stops by the loss of its batch; its reference image moves with the first step",
    "EADL1": "stops by the loss of its batch; its reference image moves with the first step",
    "FAB": "10 steps unless told otherwise, the original takes 100; a target only steers it, any other class will do",
    "JSMA": "aims at the class label + 1 and at no other",
}
REFUSED = {
    "LGV": "it trains copies of the network on a training set",
    "MultiAttack": "it takes attacks instead of a network, so list those one by one",
}
FEWEST_CLASSES = {"APGDT": 4, "AutoAttack": 4, "JSMA": 10}  # JSMA counts labels modulo 10
# Their targeted mode reads the target from the labels; all others ask a function for it, and get the labels as well.
TARGET_AS_LABEL = ("PIFGSMPP", "SPSA")


class TorchAttack:
    """An attack of torchattacks as a function ``(model, image, label) -> AttackResult``.

    It adds checks of range and type, eval mode with every flag restored, gradients in Lightning's test loop, untouched
    global generators, the device of the images, and a verdict on the very images returned. The attack runs as it is;
    only ``seed`` and ``n_classes`` are filled in where its constructor takes them and ``init_args`` does not have them:
    the seed below, and the classes of the network, at most 10 (so that APGDT and FAB aim at 9, as in AutoAttack).

    Args:
        class_path: such as ``torchattacks.PGD``.
        init_args: arguments of its constructor without the network.
        seed: of the random numbers, in each batch anew.

    Attributes:
        name: for tables, such as ``torchattacks.PGD``.
        caveat: where its result is not what its name says, or None.

    Raises:
        ModuleNotFoundError: torchattacks is not installed.
        ValueError: no such attack, one that does not attack given images, unknown or missing ``init_args``.
    """

    def __init__(self, class_path: str, init_args: Mapping[str, Any] | None = None, seed: int = 0) -> None:
        self.attack_class, self.init_args, self.seed = _find_class(class_path), dict(init_args or {}), seed
        check_whole(0, seed=seed)
        self._title = self.attack_class.__name__
        self.name = f"{class_path.partition('.')[0]}.{self._title}"
        self.caveat = CAVEATS.get(self._title)
        if self._title in REFUSED:
            raise ValueError(f"{self.name} can not be run here: {REFUSED[self._title]}.")
        signature = inspect.signature(self.attack_class)
        self._accepted = [name for name in signature.parameters if name != "model"]
        try:
            signature.bind(model=None, **self.init_args)
        except TypeError as error:
            accepted = ", ".join(self._accepted) or "nothing"
            raise ValueError(f"init_args of {self.name}: {error}; it takes {accepted}.") from error

    def __call__(
        self,
        model: nn.Module,
        image: Tensor,
        label: Tensor,
        index: Tensor | None = None,
        target: Tensor | None = None,
        batch_size: int | None = None,
    ) -> AttackResult:
        """Run the attack.

        torchattacks does not say for which samples it asks: ``queries`` is the mean over a batch, rounded up.
        ``zero_gradient`` is False.

        Args:
            model: from images in [0, 1] to logits.
            image: (B, C, H, W) float32 in [0, 1].
            label: (B,) int64.
            index: without effect, as torchattacks draws random numbers for the batch and not for a sample.
            target: (B,) int64, the classes to be reached; None: any but the label.
            batch_size: most images in one forward pass; None: all.

        Raises:
            ValueError: see :func:`lit_kd.attacks.common.run_attack`; images that are not float32, a target for an
                attack that takes none, fewer classes than the attack needs.
            RuntimeError: torchattacks raises, or returns pixels outside [0, 1].
        """
        _check_float32(image, "torchattacks")

        def search(image: Tensor, label: Tensor, target: Tensor | None, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            network = _Network(model, image)
            with _seeded(self.seed):
                attack = self._build(network, count_classes(model, image), target)
                try:
                    labels = target if target is not None and self._title in TARGET_AS_LABEL else label
                    adversarial = attack(image.clone(), labels).detach()
                except Exception as error:
                    raise RuntimeError(
                        f"{self.name} failed on images {tuple(image.shape)}: {type(error).__name__}: {error}"
                    ) from error
            low, high = adversarial.aminmax()
            if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN fails, too
                raise RuntimeError(f"{self.name} returned pixels in [{low:.3g}, {high:.3g}], outside [0, 1].")
            return adversarial.clamp(0, 1), torch.zeros_like(label, dtype=torch.bool), network.queries(label)

        return run_attack(search, model, image, label, target, None, batch_size)

    def _build(self, network: nn.Module, classes: int, target: Tensor | None) -> Any:
        fewest = 2 if target is not None else FEWEST_CLASSES.get(self._title, 2)
        if self.init_args.get("loss") == "dlr":
            fewest = 3 if target is None else 4
        if classes < fewest:
            raise ValueError(f"{self.name} needs {fewest} classes and the network has {classes}.")
        filled = {"seed": self.seed, "n_classes": min(10, classes)}
        attack = self.attack_class(
            network, **{name: value for name, value in filled.items() if name in self._accepted} | self.init_args
        )
        if target is not None:
            if "targeted" not in attack.supported_mode:
                raise ValueError(f"{self.name} has no targeted mode: leave the target out.")
            if self._title in TARGET_AS_LABEL:
                attack.set_mode_targeted_by_label(quiet=True)
            else:
                attack.set_mode_targeted_by_function(lambda images, labels: target, quiet=True)
        return attack


def _find_class(class_path: str) -> Any:
    try:
        package = import_module("torchattacks")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"TorchAttack needs {error.name}: pip install --no-deps torchattacks scipy tqdm (without --no-deps its pin "
            "on requests takes other packages back years)."
        ) from error
    module, _, name = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        near = ", ".join(
            f"torchattacks.{other}" for other in get_close_matches(name, package.__all__) or package.__all__
        )
        raise ValueError(f"class_path={class_path!r} does not exist; there is {near}.") from error
    if not (isinstance(found, type) and issubclass(found, package.attack.Attack)):
        raise ValueError(f"class_path={class_path!r} is not an attack of torchattacks, such as torchattacks.PGD.")
    return found


# What both need


class _Network(nn.Module):
    """The network as a library sees it: in eval mode, on the device of the images, counting what it is asked."""

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()
        # torchattacks takes its device from the first parameter; the network may have none.
        self.device_of_images = nn.Parameter(image.new_zeros(1), requires_grad=False)
        self.network, self.seen = network, 0
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        self.seen += len(image)
        return self.network(image)

    def queries(self, label: Tensor) -> Tensor:
        """Images seen per sample, rounded up; (B,) int64."""
        return torch.full_like(label, -(-self.seen // len(label)))


def _check_float32(image: Tensor, library: str) -> None:
    if image.dtype != torch.float32:
        raise ValueError(f"Images of {image.dtype}: {library} needs float32 pixels in [0, 1].")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of torch, CUDA, numpy and Python start from a seed, and are put back in the end."""
    isolated = isolate_rng()
    isolated.__enter__()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    finally:
        isolated.__exit__(None, None, None)  # by hand: as a `with` it puts nothing back after an exception


@contextmanager
def _traced() -> Iterator[None]:
    """Put back the trace function, which pyautoattack's check for dynamic defences takes from debugger and coverage."""
    trace = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(trace)
