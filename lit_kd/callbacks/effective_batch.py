"""What an optimizer step is made of, said once as training starts."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
from torch.optim import Optimizer


class EffectiveBatch(Callback):
    """Prints the samples of an optimizer step over all devices, and the learning rates.

        batch 64 x 8 devices x 2 accumulated = 1024 samples an optimizer step; learning rate 0.1

    Devices are those that read different data: under tensor parallelism fewer than there are. Packed rows count as one
    each. The rate is the one that the schedule multiplies, and where that begins elsewhere, as in a warm-up, also that
    of the first step. The methods of this library bring this callback along.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print, on rank 0."""
        data: Any = getattr(trainer, "datamodule", None)
        unit = "rows" if getattr(data, "packing", False) else "samples"
        mesh = pl_module.device_mesh
        devices = trainer.world_size if mesh is None else mesh["data_parallel"].size()
        rates = " | ".join(map(learning_rates, trainer.optimizers))
        batch = effective_batch(trainer.train_dataloader, devices, trainer.accumulate_grad_batches, unit)
        rank_zero_info(f"{batch}; learning rate {rates}")


def effective_batch(loader: Any, devices: int, accumulated: int, unit: str = "samples") -> str:
    """The product in words; "unknown" where a loader does not say its batch size.

    Args:
        loader: what ``trainer.train_dataloader`` is; of several loaders a step takes a batch each.
        devices: that read different data.
        accumulated: batches an optimizer step on each.
        unit: what is counted.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> effective_batch(DataLoader(range(32), batch_size=4), devices=2, accumulated=3)
        'batch 4 x 2 devices x 3 accumulated = 24 samples an optimizer step'
    """
    sizes = [batch_size(one) for one in CombinedLoader(loader).flattened]
    known = [size for size in sizes if size is not None]
    whole = len(known) == len(sizes)
    together = " + ".join(map(str, known))
    batch = "unknown" if not whole else together if len(known) == 1 else f"({together})"
    total = str(sum(known) * devices * accumulated) if whole else "an unknown number of"
    plural = "device" if devices == 1 else "devices"
    return f"batch {batch} x {devices} {plural} x {accumulated} accumulated = {total} {unit} an optimizer step"


def batch_size(loader: Any) -> int | None:
    """Samples of a batch, from the loader, or whichever of its samplers makes whole batches; None: none of them says.

    Example:
        >>> from torch.utils.data import BatchSampler, DataLoader
        >>> batch_size(DataLoader(range(9), batch_sampler=BatchSampler(range(9), 3, False)))
        3
    """
    for part in (getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None), loader):
        size = getattr(part, "batch_size", None)
        if isinstance(size, int):
            return size
    return None


def learning_rates(optimizer: Optimizer) -> str:
    """Rates of the groups of an optimizer, one for all that have the same."""
    found = []
    for group in optimizer.param_groups:
        now, peak = float(group["lr"]), float(group.get("initial_lr", group["lr"]))
        found.append(f"{peak:g}" if now == peak else f"{peak:g} (now {now:g})")
    return ", ".join(dict.fromkeys(found))
