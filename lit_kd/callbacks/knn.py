"""Weighted k-nearest-neighbour accuracy, after DINO (Caron et al., arXiv:2104.14294)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_kd.callbacks.network_probe import (
    Counts,
    NetworkProbe,
    Stage,
    class_count,
    gather_rows,
    training_set,
)
from lit_kd.checks import check_choice, check_positive, check_whole, check_whole_or_none
from lit_kd.datamodules.batch import unpack


def weighted_knn(
    bank_features: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    k: int,
    temperature: float,
    num_classes: int,
    chunk: int = 256,
) -> Tensor:
    r"""Votes of the k nearest bank samples by cosine, weighted by exp(cosine / temperature).

    .. math:: v_c(q) = \frac{\sum_{i \in N_k(q), y_i = c} e^{s_i / T}}{\sum_{i \in N_k(q)} e^{s_i / T}},
              \quad s_i = \frac{\langle q, f_i \rangle}{|q| |f_i|}

    Args:
        bank_features: f, (N, C); samples with a negative label are left out.
        bank_labels: y, (N,) int64.
        queries: q, (Q, C).
        k: neighbours; all of a smaller bank.
        temperature: T > 0.
        num_classes: number of columns, whichever classes the bank has.
        chunk: queries compared at a time: the largest tensor is (chunk, N).

    Returns:
        (Q, num_classes), rows sum to 1; NaN if the bank is empty.

    Raises:
        ValueError: k, temperature or chunk are not positive, or a label is too large.

    Example:
        >>> bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
        >>> weighted_knn(bank, torch.tensor([0, 1, 1]), torch.tensor([[3.0, 3.0]]), 3, 0.07, 2)
        tensor([[0.3333, 0.6667]])
    """
    check_whole(k=k, num_classes=num_classes, chunk=chunk)
    check_positive(temperature=temperature)
    known = bank_labels >= 0
    labels = bank_labels[known]
    if len(labels) and labels.max() >= num_classes:
        raise ValueError(f"num_classes={num_classes} is too small for label {int(labels.max())}.")
    bank = F.normalize(bank_features[known], dim=1)
    return _votes(bank, labels, F.normalize(queries, dim=1), k, temperature, num_classes, chunk)


def _votes(
    bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, num_classes: int, chunk: int
) -> Tensor:
    """Votes for normalised features whose labels are all known."""
    if not len(bank):
        return queries.new_full((len(queries), num_classes), torch.nan)
    votes = queries.new_zeros(len(queries), num_classes, dtype=torch.promote_types(queries.dtype, torch.float32))
    for part, counted in zip(queries.split(chunk), votes.split(chunk), strict=True):
        similarity, nearest = (part @ bank.T).topk(min(k, len(bank)), dim=1)  # (chunk, k)
        # A softmax is the same up to a factor for each query, and cannot overflow.
        counted.scatter_add_(1, labels[nearest], (similarity.to(votes.dtype) / temperature).softmax(1))
    return votes


class KNNProbe(NetworkProbe):
    """Logs ``val/knn<k>_t<temperature>_<network>_acc`` (and ``test/...``): accuracy of :func:`weighted_knn`.

    The bank is the training set of ``train_eval_dataloader()`` of the data module (or of the module), in eval mode
    and without augmentation, each sample once over all ranks; every rank holds the whole of it, N * C numbers, while
    it evaluates. The queries are the batches of the first loader. The sanity check is left out.

    Args:
        network: see :class:`NetworkProbe`.
        layer: likewise.
        k: neighbours.
        temperature: of the weights.
        num_classes: None: what the module or the data module say.
        every_n_epochs: how often in a fit; ``validate`` and ``test`` always do it.
        chunk: queries compared at a time, see :func:`weighted_knn`.
        dtype: in which the bank is kept and compared; halves of it cost accuracy in the order of near neighbours.

    Raises:
        ValueError: see :class:`NetworkProbe` and :func:`weighted_knn`; there is no ``train_eval_dataloader()``.
    """

    def __init__(
        self,
        network: str = "student",
        layer: str | None = None,
        k: int = 20,
        temperature: float = 0.07,
        num_classes: int | None = None,
        every_n_epochs: int = 1,
        chunk: int = 256,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(network, layer)
        check_whole(k=k, every_n_epochs=every_n_epochs, chunk=chunk)
        check_positive(temperature=temperature)
        check_whole_or_none(num_classes=num_classes)
        check_choice(("float32", "float16", "bfloat16"), dtype=dtype)
        self.k, self.temperature, self.chunk = k, temperature, chunk
        self.num_classes = num_classes
        self.every_n_epochs = every_n_epochs
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._bank: tuple[Tensor, Tensor] | None = None

    @property
    def metric(self) -> str:
        """``knn<k>_t<temperature>_<network>_acc``."""
        return f"knn{self.k}_t{self.temperature:g}_{self.network}_acc"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for the number of classes."""
        self._classes = class_count(self.num_classes, trainer, pl_module)

    def collect(self, trainer: Trainer, pl_module: LightningModule) -> tuple[Tensor, Tensor]:
        """Normalised features (N, C) and labels (N,) of the training set, of all ranks, labelled samples only."""
        device = trainer.strategy.root_device
        features, labels = [], []
        for batch in training_set(trainer, pl_module):
            image, label, _ = unpack(batch)
            features.append(F.normalize(self.features(trainer, image), dim=1).to(self.dtype)[label >= 0])
            labels.append(label[label >= 0])
        if not features:
            return torch.zeros(0, 1, dtype=self.dtype, device=device), torch.zeros(0, dtype=torch.int64, device=device)
        return gather_rows(trainer, torch.cat(features)), gather_rows(trainer, torch.cat(labels))

    def begin(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Collect the bank if it is time."""
        due = trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            self._bank = self.collect(trainer, pl_module)
            self._counts = Counts()

    def look(self, trainer: Trainer, pl_module: LightningModule, batch: Any, stage: Stage) -> None:
        """Let the neighbours vote."""
        if self._bank is None or not len(self._bank[0]):
            return
        image, label, _ = unpack(batch)
        queries = F.normalize(self.features(trainer, image), dim=1).to(self.dtype)
        votes = _votes(*self._bank, queries, self.k, self.temperature, self._classes, self.chunk)
        self._counts.update(votes.argmax(1), label)

    def report(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """Log the accuracy and free the bank."""
        if self._bank is not None:
            pl_module.log(f"{stage}/{self.metric}", self._counts.compute(trainer), sync_dist=True)
            self._bank = None
