"""The honest evaluation: on the masked mixture (N12 to N14 of the specification), its flags, and its bookkeeping."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from masked import mixture
from torch import Tensor, nn

from lit_kd.attacks import Protocol, build_suite, evaluate_chunk, join_records, summarize
from lit_kd.attacks.evaluate import Records
from lit_kd.attacks.report import Report, table
from lit_kd.attacks.suite import ATTACKS
from lit_kd.intervals import wilson_interval

EPS = 0.08
CHEAP = tuple(name for name in ATTACKS if name != "autoattack")
PROTOCOL = Protocol(
    eps=EPS,
    eps_grid=(0.02, 0.04, 0.16, 1.0),
    steps=40,
    temperature=20.0,
    attacks=CHEAP,
    cw={"steps": 60, "search_steps": 6},
)


def evaluate(
    model: nn.Module,
    protocol: Protocol,
    sources: dict[str, nn.Module] | None = None,
    samples: int = 500,
    chunk: int = 500,
) -> tuple[Report, Records]:
    image, label, *_ = mixture()
    suite = build_suite(protocol, 10, sources)
    parts = [
        evaluate_chunk(model, image[rows], label[rows], rows, suite, protocol)
        for rows in torch.arange(samples).split(chunk)
    ]
    records = join_records(parts)
    return summarize(records, suite, protocol, 10), records


@cache
def masked() -> tuple[Report, Records]:
    data = mixture()
    return evaluate(data.student, PROTOCOL, {"undefended": data.undefended, "teacher": data.teacher})


@cache
def undefended() -> Report:
    return evaluate(mixture().undefended, replace(PROTOCOL, temperature=1.0))[0]


def accuracy(report: Report, row: str) -> float:
    return report["rows"][row]["accuracy"]


def test_masked_network_is_seen_through() -> None:  # N12
    report, _ = masked()
    assert report["clean"]["accuracy"] >= 0.99
    assert accuracy(report, "fgsm_naive") >= 0.9 and accuracy(report, "pgd_naive") >= 0.9
    assert report["rows"]["fgsm_naive"]["zero_gradient_fraction"] >= 0.9
    assert accuracy(report, "fgsm_T") <= 0.1
    assert accuracy(report, "pgd_T") <= 0.02
    assert accuracy(report, "pgd_margin") <= 0.02 and accuracy(report, "apgd_dlr") <= 0.02
    assert accuracy(report, "transfer_undefended") <= 0.35
    assert report["rows"]["cw"]["success_rate"] == 1.0 and accuracy(report, "cw") == 0
    assert report["headline"]["robust_accuracy"]["accuracy"] <= 0.02


def test_flags_fire_on_the_masked_network() -> None:  # N12
    flags = masked()[0]["flags"]
    for name in (
        "zero_gradient_fgsm_naive",
        "zero_gradient_pgd_naive",
        "adaptive_stronger_than_naive",
        "black_box_stronger_pgd_naive_transfer_undefended",
        "noise_as_strong_as_fgsm_naive",
    ):
        assert name in flags, name
    assert not any(name.startswith("unbounded_pgd_margin") for name in flags)
    assert "random_forward" not in flags and "minimal_norm_weaker_than_pgd_margin" not in flags


def test_flags_are_silent_on_an_ordinary_network() -> None:
    report = undefended()
    assert report["flags"] == {}
    assert accuracy(report, "pgd_naive") <= 0.1
    assert {"fgsm_T", "pgd_T", "transfer"} <= report["left_out"].keys()


def test_everything_is_allowed_with_eps_one() -> None:  # N13
    curves = masked()[0]["curves"]
    assert curves["pgd_margin"][-1] == [1.0, pytest.approx(0, abs=0.02)]
    assert curves["pgd_naive"][-1][1] > 0.1  # only its random start gets anywhere
    assert curves["pgd_margin"][0] == [0.0, masked()[0]["clean"]["accuracy"]]
    distances = [point[1] for point in curves["cw_l2"]]
    assert distances == sorted(distances, reverse=True) and distances[-1] == 0


def test_worst_case_is_at_most_each_attack_in_the_ball() -> None:  # N14
    report, records = masked()
    worst = records["worst/robust"]
    for name, row in report["rows"].items():
        if row["settings"].get("eps", 1.0) <= EPS:
            assert not (worst & ~records[f"{name}/robust"]).any(), name
    assert report["headline"]["robust_accuracy"]["accuracy"] <= min(
        accuracy(report, name) for name in ("fgsm_naive", "pgd_naive", "pgd_margin", "apgd_dlr", "transfer_teacher")
    )
    # Sweeps beyond the ball, and minimal-norm successes outside of it, do not count.
    assert (records["pgd_margin@1/robust"] <= records["worst/robust"]).all()


class Constant(nn.Module):
    """Always says class 0."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mean((1, 2, 3))[:, None] * 0 + torch.tensor([5.0] + 9 * [0.0])


def test_a_network_that_is_never_right_is_never_robust() -> None:  # N14
    image, label, *_ = mixture()
    protocol = replace(PROTOCOL, attacks=("fgsm_naive", "pgd_margin", "cw"))
    suite = build_suite(protocol, 10)
    wrong = label != 0
    records = evaluate_chunk(Constant(), image[wrong], label[wrong], torch.arange(int(wrong.sum())), suite, protocol)
    report = summarize(records, suite, protocol, 10)
    assert report["headline"]["robust_accuracy"]["accuracy"] == 0
    for row in report["rows"].values():
        assert row["success_rate"] is None and row["accuracy"] == 0 and row["l2_median"] is None
    json.dumps(report, allow_nan=False)


def test_no_headline_from_naive_attacks_alone() -> None:
    protocol = replace(PROTOCOL, attacks=("noise", "fgsm_naive", "pgd_naive", "transfer", "cw"), cw={"steps": 20})
    report, _ = evaluate(mixture().student, protocol, {"undefended": mixture().undefended}, samples=50)
    assert report["headline"] is None and "naive attacks alone" in report["no_headline"]
    assert "none: naive attacks only" in table({"module": report})


def test_numbers_are_those_of_the_records() -> None:
    report, records = masked()
    row, correct = report["rows"]["pgd_margin"], records["clean/correct"]
    robust, l2 = records["pgd_margin/robust"], records["pgd_margin/l2"].double()
    fooled = correct & ~robust
    assert row["accuracy"] == pytest.approx(robust.double().mean().item())
    assert row["success_rate"] == pytest.approx((fooled.sum() / correct.sum()).item())
    assert row["l2_mean"] == pytest.approx(l2[fooled].mean().item())
    assert row["linf_max"] <= EPS + 1e-6
    assert row["attacked"] == int(correct.sum())
    assert report["rows"]["pgd_naive"]["l2_median_failures_infinite"] is None  # most attacks fail
    # Rounding to 8 bits rarely saves a network.
    assert row["accuracy_8_bits"] <= 0.05
    json.dumps(report, allow_nan=False)


def test_chunks_do_not_matter() -> None:
    protocol = replace(PROTOCOL, attacks=("noise", "fgsm_T", "pgd_naive", "pgd_margin", "apgd_dlr"), steps=5)
    (one, first), (many, second) = (evaluate(mixture().student, protocol, samples=60, chunk=size) for size in (60, 7))
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, rtol=1e-5, atol=1e-4, msg=name)  # margins reach hundreds
    assert one["headline"] == many["headline"]


def test_survivors_only_runs_where_all_before_have_failed() -> None:
    pytest.importorskip("pyautoattack")
    data = mixture()
    protocol = replace(PROTOCOL, attacks=("pgd_naive", "autoattack"), eps=0.03, eps_grid=(), steps=10)
    report, records = evaluate(data.student, protocol, samples=40)
    assert torch.equal(records["autoattack/attacked"], records["pgd_naive/robust"])
    assert torch.equal(records["autoattack_square/attacked"], records["autoattack/robust"])
    assert report["rows"]["autoattack"]["on_survivors"]
    full, complete = evaluate(data.student, replace(protocol, survivors_only=False), samples=40)
    assert torch.equal(complete["autoattack/attacked"], complete["clean/correct"])
    assert full["headline"]["robust_accuracy"]["accuracy"] <= accuracy(full, "autoattack")


class Dropped(nn.Module):
    """A network that drops units when it is used, too: a random defence."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image) + 0.5 * torch.randn(len(image), 10)


def test_random_forward_passes_are_flagged() -> None:
    protocol = replace(PROTOCOL, attacks=("pgd_margin",), eps_grid=(), steps=2)
    report, _ = evaluate(Dropped(mixture().student), protocol, samples=20)
    assert "random_forward" in report["flags"]


def test_weak_attacks_are_flagged() -> None:
    protocol = replace(
        PROTOCOL, attacks=("pgd_margin", "doubled_steps", "fgsm_T", "cw"), steps=1, eps=0.05, eps_grid=()
    )
    flags = evaluate(mixture().student, replace(protocol, cw={"steps": 1, "search_steps": 1}), samples=100)[0]["flags"]
    assert {"steps_not_converged", "minimal_norm_weaker_than_pgd_margin"} <= flags.keys()


@pytest.mark.parametrize(
    ("num_classes", "missing"), [(2, {"apgd_dlr", "autoattack"}), (3, {"autoattack"}), (10, set())]
)
def test_attacks_that_the_number_of_classes_rules_out_are_named(num_classes: int, missing: set[str]) -> None:
    pytest.importorskip("pyautoattack")
    suite = build_suite(Protocol(), num_classes, {"undefended": nn.Identity()})
    assert {"apgd_dlr", "autoattack"} & suite.left_out.keys() == missing
    assert all("needs" in suite.left_out[name] for name in missing)


def test_autoattack_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_kd.attacks.suite.find_spec", lambda name: None)
    suite = build_suite(Protocol(), 10)
    assert suite.left_out["autoattack"] == "AutoAttack needs pyautoattack: pip install 'lit-kd[attacks]'."
    assert "autoattack" not in {entry.name for entry in suite.entries}


def test_l2_ball() -> None:
    protocol = replace(PROTOCOL, norm="l2", eps=0.6, eps_grid=(), attacks=("noise", "pgd_margin", "cw", "fgsm_naive"))
    report, records = evaluate(mixture().student, protocol, samples=60)
    assert "fgsm_naive" in report["left_out"]
    assert records["pgd_margin/l2"].max() <= 0.6 + 1e-6 and records["noise/l2"].max() <= 0.6 + 1e-6
    inside = ~records["cw/robust"] & (records["cw/l2"] <= 0.6)
    assert not (records["worst/robust"] & inside).any()


def test_unknown_attack_gets_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"attacks=\['fgms'\] do not exist; choose from noise, fgsm_naive"):
        Protocol(attacks=("fgms",))


def test_empty_records_get_one_sentence() -> None:
    suite = build_suite(Protocol(attacks=()), 10)
    records: dict[str, Any] = {"clean/correct": torch.zeros(0, dtype=torch.bool)}
    with pytest.raises(ValueError, match="the test set is empty"):
        summarize(records, suite, Protocol(attacks=()), 10)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)]
)
def test_wilson_interval(hits: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(hits, count) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
