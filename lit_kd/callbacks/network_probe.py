"""What the evaluators share: one network of the module, its pooled features, counts over batches and ranks."""

from collections.abc import Iterable
from operator import attrgetter
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_kd.models.embedding import PooledFeatures

Stage = Literal["val", "test"]


class NetworkProbe(Callback):
    """Base of callbacks that look at one network of any LightningModule from outside.

    They call it in eval mode and without a graph, on ``batch["image"]`` (or the first of a tuple): the module's
    gradients, optimizer, running statistics and random numbers stay as they are. In each of its ``stages`` a callback
    is told to ``begin``, to ``look`` at the batches, of several loaders those of the first, and to ``report``.

    Args:
        network: dotted path of the network in the module, e.g. ``student``, ``teacher``; metric names contain it.
        layer: where its features are, see :class:`lit_kd.models.embedding.PooledFeatures`.

    Raises:
        ValueError: before the first batch, where the module has no such network, or the network no such layer.
    """

    stages: tuple[Stage, ...] = ("val", "test")

    def __init__(self, network: str = "student", layer: str | None = None) -> None:
        self.network = network
        self.layer = layer
        self._pooled: PooledFeatures | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network, once every part of the module is there."""
        self.find(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network."""
        self.find(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the network."""
        self.find(pl_module)

    def find(self, pl_module: LightningModule) -> None:
        """Find the network; its hooks are registered once."""
        network = find_attribute(pl_module, self.network, nn.Module)
        if self._pooled is None or self._pooled.network is not network:
            self._pooled = PooledFeatures(network, self.layer)

    def features(self, trainer: Trainer, image: Tensor) -> Tensor:
        """Pooled features (B, C) in the trainer's precision."""
        assert self._pooled is not None
        with trainer.precision_plugin.forward_context():
            return self._pooled.evaluate(image)

    def begin(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Before the batches of a stage."""

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: Stage) -> None:
        """Behind the module's own step on a batch."""

    def report(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """After the batches."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        if "val" in self.stages:
            self.begin(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        if "test" in self.stages:
            self.begin(trainer, pl_module, "test")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at the batch."""
        if "val" in self.stages and dataloader_idx == 0:
            self.look(trainer, pl_module, batch, "val")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at the batch."""
        if "test" in self.stages and dataloader_idx == 0:
            self.look(trainer, pl_module, batch, "test")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        if "val" in self.stages:
            self.report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        if "test" in self.stages:
            self.report(trainer, pl_module, "test")


class Counts:
    """How many predictions were right, over batches and ranks; samples with a negative label do not count."""

    def __init__(self) -> None:
        self._right_and_all: Tensor | None = None

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Add a batch: class indices (B,) and labels (B,)."""
        known = label >= 0
        batch = torch.stack([((prediction == label) & known).sum(), known.sum()])
        self._right_and_all = batch if self._right_and_all is None else self._right_and_all + batch

    def compute(self, trainer: Trainer) -> Tensor:
        """The share of right predictions over all ranks, NaN where there was none; every rank has to call it."""
        counts = self._right_and_all
        if counts is None:
            counts = torch.zeros(2, dtype=torch.int64, device=trainer.strategy.root_device)
        right, total = trainer.strategy.reduce(counts, reduce_op="sum")
        return right / total


def find_attribute(pl_module: LightningModule, path: str, kind: type | tuple[type, ...]) -> Any:
    """The attribute of a module at a dotted path (numbers index lists).

    Raises:
        ValueError: there is none of that kind.
    """
    try:
        found = attrgetter(path)(pl_module)
    except AttributeError:
        found = None
    if not isinstance(found, kind):
        names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        children = ", ".join(name for name, _ in pl_module.named_children())
        raise ValueError(f"{type(pl_module).__name__} has no {names} at {path!r}; its children are {children}.")
    return found


def class_count(given: int | None, trainer: Trainer, pl_module: LightningModule) -> int:
    """The number of classes: as given, else what the module or the data module say; never counted from labels.

    Raises:
        ValueError: nobody says.
    """
    known = [given, getattr(pl_module, "num_classes", None), getattr(_data(trainer), "num_classes", None)]
    count = next((count for count in known if count is not None), None)
    if count is None:
        raise ValueError("num_classes=None, and neither the module nor the data module has a num_classes: give it.")
    return int(count)


def training_set(trainer: Trainer, pl_module: LightningModule) -> Iterable[Any]:
    """Batches of the training set on the device, each sample once over all ranks and without augmentation.

    They come from ``train_eval_dataloader()`` of the data module, or else of the module. The loader lives for this
    one pass. torch's random state is as before.

    Raises:
        ValueError: neither has that method.
    """
    data = _data(trainer)
    owner: Any = next((owner for owner in (data, pl_module) if hasattr(owner, "train_eval_dataloader")), None)
    if owner is None:
        raise ValueError(
            "k-NN compares with the training set in evaluation: give the data module (or the module) a method "
            "train_eval_dataloader(), which yields each training sample once, without augmentation."
        )
    if owner is data and trainer.state.fn != "fit":
        data.setup("fit")  # a test reads only the test set
    with torch.random.fork_rng(devices=[]):  # a DataLoader without a generator of its own draws from the global one
        for batch in owner.train_eval_dataloader():
            yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))


def even_share(image: Tensor, batches: int | float, limit: int, taken: int) -> Tensor:
    """Some images of a batch, so that ``limit`` of all batches come evenly: sets may be sorted by class.

    Args:
        image: (B, ...).
        batches: how many there are.
        limit: images to take of all batches.
        taken: images taken so far.
    """
    share = -(-limit // int(min(batches, limit)))
    places = torch.linspace(0, len(image) - 1, min(share, limit - taken, len(image))).long()
    return image[places.to(image.device)]


def gather_rows(trainer: Trainer, rows: Tensor) -> Tensor:
    """The rows of all ranks in rank order; every rank has to call it, with as many rows as it has."""
    if trainer.world_size == 1:
        return rows
    lengths = trainer.strategy.all_gather(torch.tensor([len(rows)], device=rows.device)).flatten().tolist()
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = trainer.strategy.all_gather(padded)
    return torch.cat([part[:length] for part, length in zip(gathered, lengths, strict=True)])


def _data(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)
