"""The report of an evaluation as files: numbers, table and picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_kd.attacks.evaluate import Records
from lit_kd.attacks.report import Report, error_table, table
from lit_kd.files import replacing

GALLERY = ("fgsm_naive", "pgd_naive", "pgd_margin", "cw")


def write_report(
    folder: Path,
    setting: Mapping[str, Any],
    reports: Mapping[str, Report],
    records: Records,
    num_images: int,
    errors: bool,
) -> None:
    """``robustness.json``, ``robustness.md`` and ``robustness.png``; the table is printed."""
    with replacing(folder / "robustness.json") as temporary:
        temporary.write_text(json.dumps({**setting, "networks": reports}, indent=2))
    text = table(reports)
    for name, report in reports.items():
        flags = [f"- {flag}: {sentence}" for flag, sentence in report["flags"].items()]
        text += f"\n\nFlags of {name}:\n" + ("\n".join(flags) or "- none")
        if errors:
            text += f"\n\nErrors of {name} in %:\n{error_table(report)}"
        if not report["headline"]:
            text += f"\n\nNo robust accuracy of {name}: {report['no_headline']}"
    with replacing(folder / "robustness.md") as temporary:
        temporary.write_text(text + "\n")
    print(text)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    figure = Figure(figsize=(11, 8), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    top, bottom = halves
    _draw_curves(top.subplots(1, 2), reports)
    _draw_images(bottom, records, num_images)
    with replacing(folder / "robustness.png") as temporary:
        figure.savefig(temporary, dpi=120)


STYLE = {"fgsm_naive": ":", "pgd_naive": "--", "pgd_margin": "-"}


def _draw_curves(axes: Any, reports: Mapping[str, Report]) -> None:
    """Accuracy over eps, naive and adaptive together, and over the L2 distance that Carlini-Wagner needs."""
    for number, (network, report) in enumerate(reports.items()):
        for name, style in STYLE.items():
            if name in report["curves"]:
                eps, accuracy = zip(*report["curves"][name], strict=True)
                kind = "adaptive" if name == "pgd_margin" else "naive"
                pixels = [255 * value for value in eps]
                axes[0].plot(
                    pixels, accuracy, style, marker=".", color=f"C{number}", label=f"{network}: {name}, {kind}"
                )
        if "cw_l2" in report["curves"]:
            radius, accuracy = zip(*report["curves"]["cw_l2"], strict=True)
            axes[1].plot(radius, accuracy, color=f"C{number}", label=network)
    threat = next(iter(reports.values()))["threat_model"]
    axes[0].axvline(threat["eps_times_255"], color="grey", linewidth=0.8)
    axes[0].set_xscale("symlog", base=2, linthresh=1)
    radii = sorted(
        {255 * eps for report in reports.values() for name in STYLE for eps, _ in report["curves"].get(name, [])}
    )
    axes[0].set_xticks(radii, [f"{radius:.3g}" for radius in radii])
    axes[0].set_xlim(left=0)
    axes[0].set_xlabel(f"eps ({threat['norm']}) in 1/255; grey: the headline's")
    axes[1].set_xlabel("L2 distance, Carlini-Wagner")
    for axis in axes:
        axis.set_ylim(-0.02, 1.02)
        axis.set_ylabel("accuracy")
        if axis.lines:
            axis.legend(fontsize=7)


def _draw_images(figure: Any, records: Records, num_images: int) -> None:
    """A row of clean images and one for each attack; the title says whether the network was fooled."""
    rows = [name.removesuffix("/image") for name in records if name.endswith("/image")]
    rows.sort(key=("clean", *GALLERY).index)
    shown = records["clean/correct"][: len(records["clean/image"])].nonzero().flatten()[:num_images].tolist()
    for number, (name, axes) in enumerate(
        zip(rows, figure.subplots(len(rows), num_images, squeeze=False), strict=True)
    ):
        for axis in axes:
            axis.axis("off")
        for axis, i in zip(axes, shown, strict=False):
            axis.imshow(records[f"{name}/image"][i].permute(1, 2, 0).numpy(), interpolation="nearest")
            if number:
                verdict = "resists" if records[f"{name}/robust"][i] else "fooled"
                axis.set_title(f"{verdict}, L2 {records[f'{name}/l2'][i]:.2f}", fontsize=6)
        axes[0].text(-0.1, 0.5, name, transform=axes[0].transAxes, ha="right", va="center", fontsize=8)
