"""The robustness report of a test: attacks, verdict, flags, table and picture."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lit_kd
from lit_kd.attacks.common import count_classes
from lit_kd.attacks.evaluate import Records, evaluate_chunk, join_records
from lit_kd.attacks.libraries import TorchAttack
from lit_kd.attacks.report import Report, summarize
from lit_kd.attacks.report_files import GALLERY, write_report
from lit_kd.attacks.suite import Protocol, Suite, build_suite
from lit_kd.checks import check_network, check_whole, check_whole_or_none
from lit_kd.datamodules.batch import Batch, unpack
from lit_kd.files import replacing
from lit_kd.processes import gather_objects


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
        max_samples: how many of the test set, drawn by the protocol's seed; None: all. With ``limit_test_batches`` only
            those of them that come by.
        batch_size: images in one forward pass.
        library: attacks of torchattacks, as ``{class_path: torchattacks.PGD, init_args: {...}}``.
        num_images: columns of the picture, which needs the extra ``plots`` and is left out without it.
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
        max_samples: int | None = 1000,
        batch_size: int = 128,
        library: list[dict[str, Any]] | None = None,
        num_images: int = 8,
        errors: bool = False,
    ) -> None:
        for name, network in (("undefended", undefended), ("teacher", teacher)):
            if network is not None:
                check_network(**{name: network})
        check_whole_or_none(max_samples=max_samples)
        check_whole(batch_size=batch_size)
        check_whole(0, num_images=num_images)
        self.protocol = protocol or Protocol()
        self.undefended, self.baseline, self.teacher = undefended, baseline, teacher
        self.max_samples, self.batch_size, self.num_images = max_samples, batch_size, num_images
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
            self._count = self.max_samples or 0
        order = torch.randperm(self._count, generator=torch.Generator().manual_seed(self.protocol.seed))
        self._wanted = order[: self.max_samples].sort().values

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

    def _gather(self) -> dict[str, Tensor]:
        """The samples of all ranks by ``index``, each once."""
        parts = [part for parts in gather_objects(self._parts) for part in parts if len(part["label"])]
        if not parts:
            raise ValueError("There is no sample to attack: limit_test_batches has left none of the chosen ones.")
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        index, inverse = joined["index"].unique(return_inverse=True)
        first = torch.full((len(index),), len(inverse)).scatter_reduce_(0, inverse, torch.arange(len(inverse)), "amin")
        return {name: values[first] for name, values in joined.items()}

    # Attack and report

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack the module and the undefended network, and write the report."""
        samples = self._gather()
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
        if trainer.is_global_zero:
            write_report(where, setting, reports, shown, self.num_images, self.errors)
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
        return join_records(part for parts in gather_objects(own) for part in parts)

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


def _log(pl_module: LightningModule, report: Report) -> None:
    if report["headline"]:
        pl_module.log("test/robust_acc", report["headline"]["robust_accuracy"]["accuracy"])
    rows = {name: row["accuracy"] for name, row in report["rows"].items() if "@" not in name}
    pl_module.log_dict({f"test/robust/{name}": accuracy for name, accuracy in rows.items()})
