"""The robustness report of a test: attacks, verdict, flags, table and picture."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lit_kd
from lit_kd.attacks.common import count_classes
from lit_kd.attacks.evaluate import Protocol, Records, Suite, build_suite, evaluate_chunk, join_records
from lit_kd.attacks.libraries import TorchAttack
from lit_kd.attacks.report import Report, error_table, summarize, table
from lit_kd.datamodules.batch import Batch, unpack
from lit_kd.files import replacing

GALLERY = ("fgsm_naive", "pgd_naive", "pgd_margin", "cw")


class RobustnessReport(Callback):
    """Attacks the classifier after ``lit-kd test`` and writes ``robustness.json``, ``.md`` and ``.png``.

    The module's ``forward`` must map images in [0, 1] to logits. What is run and reported is said in
    :mod:`lit_kd.attacks.evaluate` and :mod:`lit_kd.attacks.report`. Beside the module stands an undefended network
    under the same attacks. Metrics of the logger: ``test/robust_acc`` (the headline) and ``test/robust/<attack>``.

    Chunks of ``batch_size`` samples are dealt out over the ranks, and every finished chunk is a file in
    ``<default_root_dir>/robustness/<key>``, where the key stands for networks, samples and settings: a test that was
    interrupted goes on where it stopped, and the result does not depend on the number of processes. The files are
    removed once the report is written. The chosen images of all ranks are held in memory.

    Args:
        protocol: threat model and effort; its temperature is that of the module (of its checkpoint), unless given.
        undefended: a network trained as usual: source of transferred attacks, and baseline of the report.
        baseline: False: do not attack the undefended network itself.
        teacher: another source; None: the module's own ``teacher``, if it has one.
        samples: how many of the test set, drawn by the protocol's seed; None: all. With ``limit_test_batches`` only
            those of them that come by.
        batch_size: images in one forward pass.
        library: attacks of torchattacks, as ``{class_path: torchattacks.PGD, init_args: {...}}``.
        num_pictures: columns of the picture, which needs the extra ``plots`` and is left out without it.
        errors: also give top-1 and top-5 errors under every attack and eps, as is usual for ImageNet.

    Raises:
        ValueError: parameters are sharded (FSDP): attacks of several lengths would wait for each other for ever; an
            empty test set; see :func:`lit_kd.attacks.common.run_attack`.
    """

    def __init__(
        self,
        protocol: Protocol | None = None,
        undefended: nn.Module | None = None,
        baseline: bool = True,
        teacher: nn.Module | None = None,
        samples: int | None = 1000,
        batch_size: int = 128,
        library: list[dict[str, Any]] | None = None,
        num_pictures: int = 8,
        errors: bool = False,
    ) -> None:
        if samples is not None and samples < 1:
            raise ValueError(f"samples={samples} must be at least 1, or None for the whole test set.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        self.protocol = protocol or Protocol()
        self.undefended, self.baseline, self.teacher = undefended, baseline, teacher
        self.samples, self.batch_size, self.num_pictures = samples, batch_size, num_pictures
        self.errors = errors
        self.torch_attack_specs = library or []
        self.torch_attacks = [TorchAttack(**spec, seed=self.protocol.seed) for spec in self.torch_attack_specs]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse sharded parameters."""
        if stage == "test" and isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise ValueError("RobustnessReport needs whole networks: test on one device or with the strategy 'ddp'.")
        self._reported = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning skips a test without batches, and all its hooks but this one."""
        if stage == "test" and not self._reported:
            raise ValueError("There is no sample to attack: the test set is empty.")

    # Collect the samples

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the samples."""
        self._parts: list[dict[str, Tensor]] = []
        self._seen = 0
        loaders: Any = trainer.test_dataloaders
        try:
            self._count = len((loaders[0] if isinstance(loaders, list) else loaders).dataset)
        except (AttributeError, TypeError):  # no dataset, or one without a length: the first samples that come
            self._count = self.samples or 0
        order = torch.randperm(self._count, generator=torch.Generator().manual_seed(self.protocol.seed))
        self._wanted = order[: self.samples].sort().values

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep those of the batch."""
        image, label, index = unpack(batch)
        if index is None:  # as DistributedSampler deals them out
            index = (self._seen + torch.arange(len(label))) * trainer.world_size + trainer.global_rank
        self._seen += len(label)
        keep = torch.isin(index.cpu(), self._wanted)
        part = {"image": image, "label": label, "index": index}
        self._parts.append({name: values.cpu()[keep] for name, values in part.items()})

    def _gather(self, trainer: Trainer) -> dict[str, Tensor]:
        """The samples of all ranks by ``index``, each once."""
        parts = [part for parts in _all_gather(trainer, self._parts) for part in parts if len(part["label"])]
        if not parts:
            raise ValueError("There is no sample to attack: limit_test_batches has left none of the chosen ones.")
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        index, inverse = joined["index"].unique(return_inverse=True)
        first = torch.full((len(index),), len(inverse)).scatter_reduce_(0, inverse, torch.arange(len(inverse)), "amin")
        return {name: values[first] for name, values in joined.items()}

    # Attack and report

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack the module and the undefended network, and write the report."""
        samples = self._gather(trainer)
        self._parts = []
        device = trainer.strategy.root_device
        teacher = self.teacher or getattr(getattr(pl_module, "teacher", None), "module", None)
        sources = {
            name: net.to(device)
            for name, net in (("undefended", self.undefended), ("teacher", teacher))
            if net is not None
        }
        temperature = self.protocol.temperature or float(getattr(pl_module, "temperature", 1.0))
        jobs: dict[str, tuple[nn.Module, Protocol, dict[str, nn.Module]]]
        jobs = {"module": (pl_module, replace(self.protocol, temperature=temperature), sources)}
        if self.undefended is not None and self.baseline:
            jobs["undefended"] = (self.undefended, replace(self.protocol, temperature=1.0), {})
        folder = (
            Path(trainer.default_root_dir)
            / "robustness"
            / self._key(samples, [pl_module, *sources.values()], temperature)
        )

        reports: dict[str, Report] = {}
        for name, (network, protocol, given) in jobs.items():
            num_classes = count_classes(network, samples["image"][:1].to(device))
            suite = build_suite(protocol, num_classes, given, self.torch_attacks)
            for reason in suite.left_out.items():
                rank_zero_info("robustness of %s: no %s, %s", name, *reason)
            records = self._records(trainer, name, network, samples, suite, protocol, folder)
            reports[name] = summarize(records, suite, protocol, num_classes)
            if name == "module":
                shown = {
                    key: values for key, values in records.items() if key.rpartition("/")[0] in ("clean", *GALLERY)
                }
        _log(pl_module, reports["module"])
        where = Path(trainer.log_dir or trainer.default_root_dir)
        setting = {
            "lit_kd": lit_kd.__version__,
            "torch": torch.__version__,
            "device": str(device),
            "dtype": str(samples["image"].dtype),
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
        }
        write_report(where, setting, reports, shown, self.num_pictures, self.errors)
        self._reported = True
        trainer.strategy.barrier()
        shutil.rmtree(folder, ignore_errors=True)  # by every rank, as they may have disks of their own

    def _records(
        self,
        trainer: Trainer,
        name: str,
        network: nn.Module,
        samples: Mapping[str, Tensor],
        suite: Suite,
        protocol: Protocol,
        folder: Path,
    ) -> Records:
        """Records of all samples: finished chunks from their files, the others made now, some by each rank."""
        own = []
        count = -(-len(samples["label"]) // self.batch_size)
        for number in range(trainer.global_rank, count, trainer.world_size):
            file = folder / f"{name}_{number:05}.safetensors"
            if not file.is_file():
                rank_zero_info("robustness of %s: chunk %d of %d", name, number + 1, count)
                rows = slice(number * self.batch_size, (number + 1) * self.batch_size)
                image, label, index = (samples[key][rows] for key in ("image", "label", "index"))
                device = trainer.strategy.root_device
                records = evaluate_chunk(
                    network, image.to(device), label.to(device), index, suite, protocol, () if number else GALLERY
                )
                with replacing(file) as temporary:
                    save_file(records, temporary)
            own.append(load_file(file))
        return join_records(part for parts in _all_gather(trainer, own) for part in parts)

    def _key(self, samples: Mapping[str, Tensor], networks: list[nn.Module], temperature: float) -> str:
        """Changes with anything that the records depend on."""
        settings = [lit_kd.__version__, asdict(self.protocol), temperature, self.torch_attack_specs, self.batch_size]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for tensors in (samples, *(network.state_dict() for network in networks)):
            for name in sorted(tensors):
                if isinstance(tensors[name], Tensor):
                    digest.update(name.encode())
                    digest.update(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]


def _all_gather(trainer: Trainer, own: list[Any]) -> Iterator[list[Any]]:
    """The lists of all ranks."""
    if trainer.world_size == 1:
        return iter([own])
    every: list[list[Any]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(every, own)
    return iter(every)


def _log(pl_module: LightningModule, report: Report) -> None:
    if report["headline"]:
        pl_module.log("test/robust_acc", report["headline"]["robust_accuracy"]["accuracy"])
    rows = {name: row["accuracy"] for name, row in report["rows"].items() if "@" not in name}
    pl_module.log_dict({f"test/robust/{name}": accuracy for name, accuracy in rows.items()})


@rank_zero_only
def write_report(
    folder: Path,
    setting: Mapping[str, Any],
    reports: Mapping[str, Report],
    records: Records,
    num_pictures: int,
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
    _draw_images(bottom, records, num_pictures)
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


def _draw_images(figure: Any, records: Records, num_pictures: int) -> None:
    """A row of clean images and one for each attack; the title says whether the network was fooled."""
    rows = [name.removesuffix("/image") for name in records if name.endswith("/image")]
    rows.sort(key=("clean", *GALLERY).index)
    shown = records["clean/correct"][: len(records["clean/image"])].nonzero().flatten()[:num_pictures].tolist()
    for number, (name, axes) in enumerate(
        zip(rows, figure.subplots(len(rows), num_pictures, squeeze=False), strict=True)
    ):
        for axis in axes:
            axis.axis("off")
        for axis, i in zip(axes, shown, strict=False):
            axis.imshow(records[f"{name}/image"][i].permute(1, 2, 0).numpy(), interpolation="nearest")
            if number:
                verdict = "resists" if records[f"{name}/robust"][i] else "fooled"
                axis.set_title(f"{verdict}, L2 {records[f'{name}/l2'][i]:.2f}", fontsize=6)
        axes[0].text(-0.1, 0.5, name, transform=axes[0].transAxes, ha="right", va="center", fontsize=8)
