"""AutoAttack of pyautoattack, and every attack of torchattacks, behind our interface."""

import inspect
import logging
import pickle
import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from linear import Linear, grey
from torch import Tensor, nn

from lit_kd.attacks.fgsm import fgsm
from lit_kd.attacks.libraries import CAVEATS, TorchAttack, autoattack

GRADIENTS = ("apgd-ce", "apgd-t", "fab-t")


def conv_net(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(64, classes),
    ).eval()  # fmt: skip


def batch(network: nn.Module, count: int = 3, size: int = 32) -> tuple[Tensor, Tensor]:
    image = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    return image, prediction(network, image)


def prediction(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return network(image).argmax(1)


class Bare(nn.Module):
    """No parameters and no buffers: the device can not be guessed from them."""

    def forward(self, image: Tensor) -> Tensor:
        weight = torch.linspace(-1, 1, 1920).sin().view(10, 192)
        return nn.functional.adaptive_avg_pool2d(image, 8).flatten(1) @ weight.T


class Breaks(nn.Module):
    """Lets logits through, as long as they need no gradient."""

    def forward(self, logits: Tensor) -> Tensor:
        if logits.requires_grad:
            raise RuntimeError("the network broke")
        return logits


def generators() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]


def flags(network: nn.Module) -> list[bool]:
    return [m.training for m in network.modules()] + [p.requires_grad for p in network.parameters()]


def unusual(network: nn.Sequential) -> nn.Sequential:
    """In train mode but for a batch norm that its user has frozen, and one frozen parameter."""
    network.train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    return network


# AutoAttack


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_autoattack_is_that_of_the_library(norm: Any) -> None:
    library = pytest.importorskip("pyautoattack")
    network = conv_net()
    image, label = batch(network, 8, 8)
    eps = 0.01 if norm == "linf" else 0.3
    ours = autoattack(network, image, label, eps=eps, norm=norm, attacks=GRADIENTS, seed=3)
    theirs = library.AutoAttack(network, eps=eps, norm={"linf": "Linf", "l2": "L2"}[norm], seed=3)
    theirs.attacks_to_run = list(GRADIENTS)
    trace = sys.gettrace()  # which the library takes from coverage
    expected, predicted = theirs.run_standard_evaluation(image, label)
    sys.settrace(trace)
    assert torch.equal(ours.adversarial, expected)
    assert torch.equal(ours.success, predicted != label) and 0 < ours.success.float().mean() < 1
    assert (ours.linf if norm == "linf" else ours.l2).max() <= eps + 1e-6
    assert torch.equal(ours.adversarial[~ours.success], image[~ours.success])
    assert not ours.zero_gradient.any()


@pytest.mark.slow
def test_autoattack_in_two_calls_with_the_search_without_gradients_last() -> None:
    pytest.importorskip("pyautoattack")
    network = conv_net()
    image, label = batch(network, 6, 8)
    settings: dict[str, Any] = {"eps": 0.008}
    whole = autoattack(network, image, label, attacks=("apgd-ce", "square"), **settings)
    first = autoattack(network, image, label, attacks=("apgd-ce",), **settings)
    left = ~first.success
    second = autoattack(network, image[left], label[left], attacks=("square",), **settings)
    assert 0 < left.sum() < 6 and torch.equal(first.adversarial[~left], whole.adversarial[~left])
    assert torch.equal(second.adversarial, whole.adversarial[left])
    assert second.queries[0] >= 5000 or second.success.all()


def test_queries_of_autoattack_are_the_mean_of_the_batch() -> None:
    pytest.importorskip("pyautoattack")

    class Counter(nn.Module):
        seen = 0

        def forward(self, image: Tensor) -> Tensor:
            self.seen += len(image)
            return network(image)

    network, counter = conv_net(), Counter()
    image, label = batch(network, 8, 8)
    result = autoattack(counter, image, label, eps=0.01, attacks=("apgd-ce", "apgd-t"))
    # Beside the library's, three of ours: check of the network, number of classes (one image each), verdict (all).
    assert (result.queries == -(-(counter.seen - 10) // 8)).all()


@pytest.mark.parametrize(("classes", "attacks"), [(2, ("apgd-ce", "fab-t")), (3, ("apgd-dlr", "fab")), (4, GRADIENTS)])
def test_autoattack_of_few_classes_aims_at_no_more_than_there_are(
    classes: int, attacks: Any, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyautoattack")
    network = Linear(classes)
    image = grey(8)
    label = prediction(network, image)
    with caplog.at_level(logging.WARNING):
        assert autoattack(network, image, label, attacks=attacks, eps=0.1).success.all()
        autoattack(network, image, label, attacks=attacks, eps=1e-4)
    assert "than possible" not in caplog.text and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("classes", "attack", "needed"), [(2, "apgd-dlr", 3), (2, "apgd-t", 4), (3, "apgd-t", 4)])
def test_autoattack_of_too_few_classes(classes: int, attack: str, needed: int) -> None:
    pytest.importorskip("pyautoattack")
    sentence = rf"^AutoAttack's {attack} needs {needed} classes and the network has {classes}: leave it out, .*\.$"
    with pytest.raises(ValueError, match=sentence):
        autoattack(Linear(classes), grey(8), torch.zeros(8, dtype=torch.int64), attacks=("apgd-ce", attack))


def test_autoattack_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ModuleNotFoundError, match=r"^AutoAttack needs pyautoattack: pip install 'lit-kd\[attacks\]'.$"):
        autoattack(Linear(), grey(8), torch.arange(8))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"attacks": ("apgd",)}, r"attacks=\('apgd',\) must be some of apgd-ce, "),
        ({"attacks": ()}, r"attacks=\(\) must be some of"),
        ({"image": grey(8, torch.float64)}, r"torch.float64: pyautoattack needs float32"),
        ({"image": grey(8) * 255}, r"Images span"),
    ],
)
def test_bad_input_of_autoattack_gets_one_sentence(change: dict[str, Any], sentence: str) -> None:
    pytest.importorskip("pyautoattack")
    settings = {"model": Linear(), "image": grey(8), "label": torch.arange(8), **change}
    with pytest.raises(ValueError, match=sentence):
        autoattack(settings.pop("model"), settings.pop("image"), settings.pop("label"), **settings)


# Both libraries


def pgd_of_torchattacks(network: nn.Module, image: Tensor, label: Tensor, **settings: Any) -> Any:
    return TorchAttack("torchattacks.PGD", {"steps": 2})(network, image, label, **settings)


def short_autoattack(network: nn.Module, image: Tensor, label: Tensor, **settings: Any) -> Any:
    return autoattack(network, image, label, attacks=("apgd-ce",), **settings)


both = pytest.mark.parametrize(
    ("package", "attack"), [("torchattacks", pgd_of_torchattacks), ("pyautoattack", short_autoattack)]
)


@both
def test_flags_and_global_generators_are_put_back(package: str, attack: Any) -> None:
    pytest.importorskip(package)
    network = conv_net()
    image, label = batch(network)
    expected = attack(network, image, label)
    before, states = flags(unusual(network)), generators()
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            result = attack(network, image.clone(), label.clone())  # clones made here are inference tensors
        assert torch.equal(result.adversarial, expected.adversarial) and result.linf.max() > 0.001
    assert flags(network) == before and generators() == states
    assert all(parameter.grad is None for parameter in network.parameters())


@both
def test_also_after_an_exception(package: str, attack: Any) -> None:
    pytest.importorskip(package)
    network = nn.Sequential(conv_net(), Breaks())
    image, label = batch(network[0])
    before, states, trace = flags(unusual(network[0])), generators(), sys.gettrace()
    with pytest.raises(RuntimeError, match="the network broke"):
        attack(network, image, label)
    assert flags(network[0]) == before and generators() == states and sys.gettrace() is trace


@both
def test_chunks_empty_batches_and_networks_without_parameters(
    package: str, attack: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(package)
    network = Bare()
    image, label = batch(network, 5)
    result = attack(network, image, label, batch_size=2)
    assert result.adversarial.shape == image.shape and result.queries.shape == (5,)
    assert torch.equal(result.success, prediction(network, result.adversarial) != label)
    assert attack(network, image[:0], label[:0]).success.shape == (0,)
    assert capsys.readouterr() == ("", "")


@both
def test_debuggers_and_coverage_go_on(package: str, attack: Any) -> None:
    pytest.importorskip(package)
    network = Bare()
    image, label = batch(network)
    before = sys.gettrace()

    def trace(*args: Any) -> None:
        return None

    try:
        sys.settrace(trace)
        attack(network, image, label)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)


# torchattacks

# Settings that make each attack as short as it can be
SHORT = {
    "steps": 2, "num_iter_set": 2, "max_iterations": 11, "binary_search_steps": 2, "n_queries": 20, "gamma": 5e-4,
    "restarts": 1, "popsize": 5, "nb_sample": 8, "N": 2,
}  # fmt: skip
NO_TARGET = ("VANILA", "GN", "TPGD", "APGD", "APGDT", "PIFGSM", "DeepFool", "SparseFool", "AutoAttack")
ATTACKS = (
    *("VANILA", "GN", "FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "MIFGSM", "UPGD", "APGD", "APGDT"),
    *("DIFGSM", "TIFGSM", "Jitter", "NIFGSM", "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA", "PIFGSM", "PIFGSMPP"),
    *("CW", "PGDL2", "PGDRSL2", "DeepFool", "EADEN", "EADL1", "SparseFool", "OnePixel", "Pixle", "JSMA", "FAB"),
    *("AutoAttack", "Square"),
)


def short(name: str) -> TorchAttack:
    accepted = inspect.signature(getattr(pytest.importorskip("torchattacks"), name)).parameters
    return TorchAttack(f"torchattacks.{name}", {key: value for key, value in SHORT.items() if key in accepted})


def test_the_list_of_attacks_is_complete() -> None:
    assert {*ATTACKS, "MultiAttack", "LGV"} == set(pytest.importorskip("torchattacks").__all__)
    assert CAVEATS.keys() <= set(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # SparseFool with numpy 2
def test_every_attack_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    attack = short(name)
    network = conv_net()
    image, label = batch(network)
    before, states = flags(unusual(network)), generators()
    with torch.inference_mode():
        result = attack(network, image.clone(), label.clone())
        again = attack(network, image.clone(), label.clone())
    assert attack.name == f"torchattacks.{name}" and attack.caveat == CAVEATS.get(name)
    assert result.adversarial.shape == image.shape and result.adversarial.dtype == torch.float32
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    assert torch.equal(result.adversarial, again.adversarial)
    assert (result.queries > 0).all() == (name not in ("VANILA", "GN"))  # these do not look at the network
    assert flags(network) == before and generators() == states
    assert torch.equal(result.success, prediction(network.eval(), result.adversarial) != label)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_attack_runs_on_a_network_without_parameters(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    network = Bare()
    image, label = batch(network, 2, 10)
    assert short(name)(network, image, label).success.shape == (2,)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in NO_TARGET])
def test_targets(name: str) -> None:
    attack = short(name)
    network = Linear()
    image = grey(4)
    label = prediction(network, image)
    target = (label + 3) % 10
    result = attack(network, image, label, target=target)
    assert torch.equal(result.success, prediction(network, result.adversarial) == target)

    def gap(x: Tensor) -> Tensor:
        logits = network(x).detach()
        return (logits.gather(1, target[:, None]) - logits.gather(1, label[:, None])).mean()

    if name in ("EADEN", "EADL1", "CW", "FAB", "JSMA", "OnePixel", "Pixle", "Square"):
        return  # these give the clean image where they fail, and in two steps they do; or a change that is too small
    assert gap(result.adversarial) > gap(image)


@pytest.mark.parametrize("name", NO_TARGET)
def test_attacks_without_targets_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^torchattacks.{name} has no targeted mode: leave the target out\.$"):
        short(name)(Linear(), grey(4), torch.arange(4), target=torch.arange(4) + 1)


def test_fgsm_is_ours_to_the_bit() -> None:
    pytest.importorskip("torchattacks")
    network = conv_net()
    image, label = batch(network, 16)
    theirs = TorchAttack("torchattacks.FGSM", {"eps": 0.03})(network, image, label)
    ours = fgsm(network, image, label, eps=0.03)
    for name in ("adversarial", "success", "l2", "linf", "queries"):
        assert torch.equal(getattr(theirs, name), getattr(ours, name)), name


def test_random_numbers_are_those_of_the_seed() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    network = conv_net()
    image, label = batch(network)
    one, two = (TorchAttack("torchattacks.PGD", {"steps": 3}, seed=seed)(network, image, label) for seed in (1, 2))
    torch.manual_seed(1)
    assert torch.equal(one.adversarial, torchattacks.PGD(network, steps=3)(image, label))
    assert not torch.equal(one.adversarial, two.adversarial)
    # Seeds of their own are filled in (AutoAttack's is the time of day), unless they are given.
    for name, own, same in (("Square", {}, False), ("Square", {"seed": 0}, True), ("AutoAttack", {}, False)):
        settings = {"eps": 0.3, **own, **({"n_queries": 10} if name == "Square" else {})}
        seeds = [TorchAttack(f"torchattacks.{name}", settings, seed=seed)(network, image, label) for seed in (1, 2)]
        assert torch.equal(seeds[0].adversarial, seeds[1].adversarial) == same


def test_few_classes() -> None:
    pytest.importorskip("torchattacks")
    image = grey(4)
    for name, classes, settings in (
        ("APGDT", 4, {}), ("AutoAttack", 4, {}), ("FAB", 2, {"multi_targeted": True}), ("APGD", 3, {"loss": "dlr"}),
    ):  # fmt: skip
        attack = TorchAttack(f"torchattacks.{name}", {"eps": 0.1, **settings})
        network = Linear(classes)
        assert attack(network, image, prediction(network, image)).success.all()
        if classes > 2:
            fewer = Linear(classes - 1)
            sentence = rf"^torchattacks.{name} needs {classes} classes and the network has {classes - 1}\.$"
            with pytest.raises(ValueError, match=sentence):
                attack(fewer, image, prediction(fewer, image))
    with pytest.raises(ValueError, match=r"JSMA needs 10 classes and the network has 3"):
        TorchAttack("torchattacks.JSMA")(Linear(3), image, prediction(Linear(3), image))
    target = 1 - prediction(Linear(3), image).clamp(max=1)
    TorchAttack("torchattacks.JSMA")(Linear(3), image, prediction(Linear(3), image), target=target)
    with pytest.raises(ValueError, match=r"UPGD needs 4 classes and the network has 3"):
        TorchAttack("torchattacks.UPGD", {"loss": "dlr"})(Linear(3), image, 1 - target, target=target)


def test_caveats_are_true() -> None:
    """What is said of CW: all logits negative, pixels at 0 or 1, kappa ignored, companions in the batch."""
    pytest.importorskip("torchattacks")
    network, image = Linear(), grey(16)
    label = prediction(network, image)
    cw = TorchAttack("torchattacks.CW", {"c": 100, "steps": 50})
    assert cw.caveat is not None and "no search over c" in cw.caveat
    assert cw(network, image, label).success.all()
    assert cw(Linear(shift=-1000.0), image, label).success.sum() <= 1  # by rounding
    assert not cw(network, image.round(), prediction(network, image.round())).linf.any()
    sure = TorchAttack("torchattacks.CW", {"c": 100, "steps": 50, "kappa": 5})(network, image, label)
    logits = network(sure.adversarial).detach()
    assert (logits.amax(1) - logits.gather(1, label[:, None]).squeeze(1)).min() < 5
    weak = TorchAttack("torchattacks.CW", {"c": 1, "steps": 50})
    assert not torch.equal(weak(network, image, label).queries, weak(network, image, label, batch_size=1).queries)
    assert "not comparable with RobustBench" in str(TorchAttack("torchattacks.AutoAttack").caveat)
    assert TorchAttack("torchattacks.PGD").caveat is None


@pytest.mark.parametrize("name", ["TIFGSM", "PIFGSM", "PIFGSMPP"])
def test_attacks_of_three_channels_fail_on_grey_images_with_one_sentence(name: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(RuntimeError, match=rf"torchattacks.{name} failed on images \(2, 1, 8, 8\): RuntimeError: "):
        short(name)(network, torch.rand(2, 1, 8, 8), torch.arange(2))


def test_pixels_outside_of_the_range_are_not_clipped_silently() -> None:
    torchattacks = pytest.importorskip("torchattacks")

    class Careless(torchattacks.attack.Attack):
        def __init__(self, model: nn.Module, shift: float = 0.0) -> None:
            super().__init__("Careless", model)
            self.shift = shift

        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return images + self.shift

    globals()["Careless"] = Careless
    path = f"{__name__}.Careless"
    image = torch.ones(2, 3, 8, 8)
    label = prediction(Linear(), image)
    assert TorchAttack(path, {"shift": 5e-7})(Linear(), image, label).adversarial.max() == 1
    for shift, shown in ((0.1, r"1.1"), (float("nan"), "nan")):
        with pytest.raises(RuntimeError, match=rf"Careless returned pixels in \[{shown}, {shown}\], outside \[0, 1\]"):
            TorchAttack(path, {"shift": shift})(Linear(), image, label)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"class_path": "torchattacks.PDG"}, r"'torchattacks.PDG' does not exist; there is torchattacks.PGD\.$"),
        ({"class_path": "PGD"}, r"class_path='PGD' does not exist; there is torchattacks.PGD, "),
        ({"class_path": "torchatacks.PGD"}, r"'torchatacks.PGD' does not exist; there is torchattacks.PGD, "),
        ({"class_path": "torchattacks.zzz"}, r"does not exist; there is torchattacks.VANILA, torchattacks.GN, "),
        ({"class_path": "torch.nn.Linear"}, r"'torch.nn.Linear' is not an attack of torchattacks"),
        (
            {"class_path": "torchattacks.PGD", "init_args": {"epsilon": 0.1}},
            r"^init_args of torchattacks.PGD: got an unexpected keyword argument 'epsilon'; it takes eps, alpha, ",
        ),
        ({"class_path": "torchattacks.PGD", "init_args": {"model": None}}, r"multiple values for .* 'model'"),
        ({"class_path": "torchattacks.VANILA", "init_args": {"eps": 1}}, r"'eps'; it takes nothing"),
        ({"class_path": "torchattacks.MultiAttack"}, r"can not be run here: it takes attacks instead of a network"),
        ({"class_path": "torchattacks.LGV"}, r"can not be run here: it trains copies of the network"),
    ],
)
def test_bad_settings_fail_before_any_attack(settings: dict[str, Any], sentence: str) -> None:
    pytest.importorskip("torchattacks")
    with pytest.raises(ValueError, match=sentence):
        TorchAttack(**settings)


def test_without_its_package_the_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"^TorchAttack needs torchattacks: pip install --no-deps torchattacks"
    ):
        TorchAttack("torchattacks.PGD")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": grey(4) * 255}, r"Images span"),
        ({"image": grey(4, torch.float64)}, r"torch.float64: torchattacks needs float32"),
        ({"image": grey(4).bfloat16()}, r"torch.bfloat16: torchattacks needs float32"),
        ({"model": nn.Sequential(Linear(), nn.Softmax(1))}, r"gives probabilities"),
        ({"label": torch.full((4,), 10)}, r"label spans \[10, 10\]"),
    ],
)
def test_bad_input_of_torchattacks_gets_one_sentence(change: dict[str, Any], sentence: str) -> None:
    pytest.importorskip("torchattacks")
    settings = {"model": Linear(), "image": grey(4), "label": torch.arange(4), **change}
    with pytest.raises(ValueError, match=sentence):
        TorchAttack("torchattacks.PGD")(settings.pop("model"), settings.pop("image"), settings.pop("label"), **settings)


def test_it_can_be_sent_to_another_process() -> None:
    pytest.importorskip("torchattacks")
    copy = pickle.loads(pickle.dumps(TorchAttack("torchattacks.PGD", {"steps": 2}, seed=4)))
    assert copy.name == "torchattacks.PGD" and copy.seed == 4
    image, label = batch(Bare())
    assert copy(Bare(), image, label, index=torch.arange(3)).success.shape == (3,)
