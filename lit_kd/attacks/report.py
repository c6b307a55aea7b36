"""From the records of an evaluation to its numbers, the signs of gradient masking, and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lit_kd.attacks.evaluate import Records
from lit_kd.attacks.suite import SWEPT, Protocol, Suite
from lit_kd.intervals import wilson_interval

Report = dict[str, Any]


def summarize(records: Records, suite: Suite, protocol: Protocol, num_classes: int) -> Report:
    """Everything that is reported of one network, as plain values.

    With N samples, correct_i of the clean image and robust_i = correct_i and still correct after the attack:

        accuracy       mean robust_i over all N, with the 95 % Wilson interval
        success_rate   sum (correct_i and not robust_i) / sum correct_i over attacked samples; None for none
        l2             mean and median over successes, median with failures as infinite, coverage = successes / attacked

    The headline is the accuracy under the worst of all attacks that kept to the ball, sample by sample. It is None
    unless an adaptive attack or AutoAttack is among them.

    Args:
        records: of all samples, from :func:`lit_kd.attacks.join_records`.
        suite: the attacks that were run.
        protocol: theirs.
        num_classes: number of logits.

    Raises:
        ValueError: no sample.
    """
    correct = records["clean/correct"]
    if not len(correct):
        raise ValueError("There is no sample to evaluate: the test set is empty.")
    rows = {
        entry.name: {
            "kind": entry.kind,
            "settings": {name: _plain(value) for name, value in entry.settings.items()},
            **_row(records, entry.name),
            **({"on_survivors": True} if entry.survivors_only else {}),
            **({"caveat": entry.caveat} if entry.caveat else {}),
        }
        for entry in suite.entries
    }
    report: Report = {
        "threat_model": {"norm": protocol.norm, "eps": protocol.eps, "eps_times_255": protocol.eps * 255},
        "temperature": protocol.temperature or 1.0,
        "seed": protocol.seed,
        "samples": len(correct),
        "clean": {
            **_proportion(correct),
            "top1_error": 100 * (1 - _mean(correct)),
            "top5_error": 100 * (1 - _mean(records["clean/top5"])),
        },
        "rows": rows,
        "left_out": dict(suite.left_out),
        "curves": _curves(records, rows, protocol),
    }
    adaptive = [name for name, row in rows.items() if row["kind"] == "adaptive" and "@" not in name]
    if adaptive:
        report["headline"] = {
            "robust_accuracy": _proportion(records["worst/robust"]),
            "attacks": [entry.name for entry in suite.entries],
        }
    else:
        report["headline"] = None
        report["no_headline"] = (
            "No adaptive attack was run, and naive attacks alone can be fooled by masked gradients: "
            "add pgd_margin or autoattack to the attacks."
        )
    report["flags"] = flags(report, records, num_classes)
    return report


def _row(records: Records, name: str) -> dict[str, Any]:
    field = {key.rpartition("/")[2]: value for key, value in records.items() if key.rpartition("/")[0] == name}
    attacked, robust = field["attacked"], field["robust"]
    fooled = attacked & ~robust
    l2 = field["l2"].double()
    return {
        **_proportion(robust),
        "accuracy_8_bits": _mean(field["rounded"] & robust),
        "top1_error": 100 * (1 - _mean(robust)),
        "top5_error": 100 * (1 - _mean(field["top5"])),
        "attacked": int(attacked.sum()),
        "success_rate": _ratio(fooled, attacked),
        "l2_mean": l2[fooled].mean().item() if fooled.any() else None,
        "l2_median": l2[fooled].median().item() if fooled.any() else None,
        "l2_median_failures_infinite": _finite(l2.where(fooled, torch.inf)[attacked].median())
        if attacked.any()
        else None,
        "linf_max": field["linf"][attacked].max().item() if attacked.any() else None,
        "zero_gradient_fraction": _ratio(field["zero_gradient"], attacked),
        "queries_mean": field["queries"][attacked].double().mean().item() if attacked.any() else None,
        "margin_mean": field["margin"][attacked].double().mean().item() if attacked.any() else None,
    }


def _curves(records: Records, rows: Mapping[str, Any], protocol: Protocol) -> dict[str, list[list[float]]]:
    """Points [radius, accuracy]: of attacks in a ball over eps, of the minimal-norm attack over its L2 distance."""
    clean = _mean(records["clean/correct"])
    curves = {}
    for name in SWEPT:
        points = {0.0: clean}
        for row in rows:
            if row.partition("@")[0] == name:
                points[rows[row]["settings"]["eps"]] = rows[row]["accuracy"]
        if len(points) > 1:
            curves[name] = [[eps, points[eps]] for eps in sorted(points)]
    if "cw" in rows and rows["cw"]["success_rate"]:
        distance = torch.where(records["cw/robust"], torch.inf, records["cw/l2"]).where(records["clean/correct"], 0)
        last = distance[distance.isfinite()].max().item()
        curves["cw_l2"] = [[radius, _mean(distance > radius)] for radius in torch.linspace(0, last, 41).tolist()]
    return curves


# Signs that a number is not what it seems (Carlini et al., arXiv:1902.06705; AutoAttack's own checks)


def flags(report: Report, records: Records, num_classes: int) -> dict[str, str]:
    """Signs of masked gradients or weak attacks, name -> sentence with the numbers; empty is good."""
    rows = report["rows"]
    accuracy = {name: row["accuracy"] for name, row in rows.items()}
    found: dict[str, str] = {}

    def compare(flag: str, left: str, right: str, by: float, sentence: str) -> None:
        """Raise a flag where the accuracy of row ``left`` is higher than that of row ``right`` by more than ``by``."""
        if left in accuracy and right in accuracy and accuracy[left] > accuracy[right] + by:
            found[flag] = f"{sentence}: {left} {accuracy[left]:.1%}, {right} {accuracy[right]:.1%}."

    for single, iterative in (("fgsm_naive", "pgd_naive"), ("fgsm_T", "pgd_T")):
        compare(f"single_step_stronger_{iterative}", iterative, single, 0.01, "One step does more than many")
    for white in ("pgd_naive", "pgd_margin"):
        for black in (name for name in rows if rows[name]["kind"] == "transfer"):
            sentence = "Attacks made for another network do more than white-box ones"
            compare(f"black_box_stronger_{white}_{black}", white, black, 0.01, sentence)
    compare("adaptive_stronger_than_naive", "pgd_naive", "pgd_margin", 0.01, "The naive attack is masked")
    for name in ("fgsm_naive", "pgd_naive"):
        compare(f"noise_as_strong_as_{name}", name, "noise", -0.03, "Random noise of the same size does as much")
    for name, points in report["curves"].items():
        # A single step of any length may land on an image that happens to be classified rightly.
        if name.startswith("pgd") and any(
            later[1] > earlier[1] + 0.01 for earlier, later in zip(points, points[1:], strict=False)
        ):
            found[f"not_monotone_{name}"] = f"Accuracy under {name} rises with eps: {points}."
        if points[-1][0] == 1 and name.startswith("pgd") and points[-1][1] > 1 / num_classes:
            found[f"unbounded_{name}"] = (
                f"With eps = 1 every image is allowed, yet accuracy under {name} is {points[-1][1]:.1%}."
            )
    for name, row in rows.items():
        if row["zero_gradient_fraction"] and "@" not in name:
            found[f"zero_gradient_{name}"] = (
                f"The whole gradient of {row['zero_gradient_fraction']:.1%} of the samples is exactly 0 in {name}."
            )
        if not records[f"{name}/repeated"][records[f"{name}/attacked"]].all():
            found[f"not_repeatable_{name}"] = f"A second forward pass judges adversarial images of {name} otherwise."
    if (spread := records["clean/spread"].max().item()) > 1e-4:
        found["random_forward"] = (
            f"Five forward passes differ by {spread:.2g} of the largest logit: attack the average of many (EOT)."
        )
    compare(
        "square_stronger_than_gradients", "autoattack", "autoattack_square", 0.002, "Search without gradients helps"
    )
    compare("steps_not_converged", "pgd_margin", "doubled_steps", 0.005, "Twice the steps fool more")
    if "doubled_steps" in rows and "pgd_margin" in rows:
        both = records["pgd_margin/robust"] & records["doubled_steps/robust"]
        once, twice = (records[f"{name}/margin"][both].double() for name in ("pgd_margin", "doubled_steps"))
        if both.any() and (twice - once).mean() > 0.01 * once.abs().mean():
            found["loss_still_rising"] = (
                f"Twice the steps raise the mean margin of survivors from {once.mean():.3g} to {twice.mean():.3g}."
            )
    if "cw" in rows:
        for name in ("fgsm_naive", "pgd_margin"):
            compare(f"minimal_norm_weaker_than_{name}", "cw", name, 0.0, "The attack without a budget does less")
    return found


# The table


def table(reports: Mapping[str, Report]) -> str:
    """Markdown: a row an attack, a column a network; the worst case last."""
    lines = ["| attack | " + " | ".join(reports) + " |", "|---|" + "---|" * len(reports)]
    first = next(iter(reports.values()))
    lines.append("| clean | " + " | ".join(_percent(report["clean"]) for report in reports.values()) + " |")
    names = [name for report in reports.values() for name in report["rows"] if "@" not in name]
    for name in dict.fromkeys(names):
        cells = [_percent(report["rows"].get(name)) for report in reports.values()]
        kind = next(report["rows"][name]["kind"] for report in reports.values() if name in report["rows"])
        lines.append(f"| {name} ({KIND[kind]}) | " + " | ".join(cells) + " |")
    cells = [
        f"**{_percent(report['headline']['robust_accuracy'])}**" if report["headline"] else "none: naive attacks only"
        for report in reports.values()
    ]
    lines.append("| **robust accuracy (adaptive, worst case)** | " + " | ".join(cells) + " |")
    threat = first["threat_model"]
    note = (
        f"Accuracy in %, {first['samples']} samples, 95 % interval; {threat['norm']} ball of {threat['eps']:.6g} "
        f"({threat['eps_times_255']:.4g}/255), seed {first['seed']}."
    )
    return "\n".join([*lines, "", note])


def error_table(report: Report) -> str:
    """Markdown: top-1 and top-5 error in % of the clean images and under each attack, sweeps over eps included."""
    lines = ["| attack | eps | top-1 error | top-5 error |", "|---|---|---|---|"]
    rows = {"clean": report["clean"], **report["rows"]}
    for name, row in rows.items():
        eps = row.get("settings", {}).get("eps")
        radius = "-" if eps is None else f"{eps:.6g}"
        lines.append(f"| {name.partition('@')[0]} | {radius} | {row['top1_error']:.2f} | {row['top5_error']:.2f} |")
    return "\n".join(lines)


KIND = {
    "diagnostic": "sanity check",
    "naive": "naive, can be masked",
    "adaptive": "adaptive",
    "transfer": "transfer",
    "minimal_norm": "any distance",
    "library": "library",
}


def _percent(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    low, high = row["interval_95"]
    extra = f", L2 {row['l2_median']:.3g}" if row.get("kind") == "minimal_norm" and row["l2_median"] is not None else ""
    return f"{100 * row['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]{extra}"


# Small numbers


def _proportion(hits: Tensor) -> dict[str, Any]:
    return {"accuracy": _mean(hits), "interval_95": list(wilson_interval(int(hits.sum()), len(hits)))}


def _mean(hits: Tensor) -> float:
    return hits.double().mean().item()


def _ratio(hits: Tensor, among: Tensor) -> float | None:
    return int(hits[among].sum()) / int(among.sum()) if among.any() else None


def _finite(value: Tensor) -> float | None:
    return value.item() if torch.isfinite(value) else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
