"""Contrastive representation distillation: embedding heads, memory of the data set and loss."""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lit_kd.checks import check_choice, check_positive, check_share, check_whole
from lit_kd.losses.shared import full_precision

log = logging.getLogger(__name__)

Negatives = Literal["class", "instance"]
EPS = 1e-7  # in the denominators of the published code: adds n * EPS to a side's loss


def bank_bytes(samples: int, feature_dim: int) -> int:
    """Bytes of the two float32 banks of a training set.

    Args:
        samples: of the set.
        feature_dim: of the embeddings.

    Example:
        >>> bank_bytes(50_000, 128)
        51200000
    """
    return 2 * 4 * samples * feature_dim


class ContrastMemory(nn.Module):
    """One embedding of student and of teacher for each sample of a set, and the negatives of each sample."""

    bank_student: Tensor  # (n, D); row i belongs to the dataset position samples[i]
    bank_teacher: Tensor
    samples: Tensor  # (n,)
    classes: Tensor  # (n,); with instance negatives each sample is a class of its own
    row_of: Tensor  # row of each dataset position, -1 outside the set
    by_class: Tensor  # (n,) rows sorted by class
    class_start: Tensor  # first place of each class in by_class
    class_count: Tensor

    def __init__(self, feature_dim: int, num_negatives: int, momentum: float, negatives: Negatives) -> None:
        """Build an empty memory.

        Args:
            feature_dim: D, width of the embeddings.
            num_negatives: K, negatives of each sample, drawn with replacement.
            momentum: share of the old row in a new one.
            negatives: "class" draws from the samples of other classes, "instance" from all other samples.
        """
        super().__init__()
        check_choice(("class", "instance"), negatives=negatives)
        check_whole(feature_dim=feature_dim, num_negatives=num_negatives)
        check_share(momentum=momentum)
        self.num_negatives = num_negatives
        self.momentum = momentum
        self.negatives = negatives
        self.register_buffer("bank_student", torch.empty(0, feature_dim))
        self.register_buffer("bank_teacher", torch.empty(0, feature_dim))
        self.register_buffer("samples", torch.empty(0, dtype=torch.long))
        self.register_buffer("classes", torch.empty(0, dtype=torch.long))
        self._index_samples()

    def set_samples(self, index: Tensor, labels: Tensor | None) -> None:
        """Size the banks for the dataset positions `index` (n,) with `labels` (n,), see :class:`CRDLoss`."""
        index, device = index.cpu(), self.samples.device
        if len(set(index.tolist())) != len(index):
            raise ValueError("index names a dataset position twice: give each sample of the set once")
        if self.negatives == "instance":
            classes = torch.arange(len(index))
        elif labels is None:
            raise ValueError('negatives="class" needs labels: pass them to set_samples, or use "instance"')
        elif len(labels) != len(index):
            raise ValueError(f"index and labels must be of the same samples, got {len(index)} and {len(labels)}")
        else:
            classes = labels.cpu()
        if (classes == classes[:1]).all():
            raise ValueError(f"a set needs negatives, but its {len(index)} samples are all of one class")
        dim = self.bank_student.shape[1]
        bound = 1 / math.sqrt(dim / 3)
        generator = torch.Generator().manual_seed(0)  # one start on all ranks, without communication
        for name in ("bank_student", "bank_teacher"):
            rows = torch.rand(len(index), dim, generator=generator) * 2 * bound - bound
            setattr(self, name, rows.to(getattr(self, name)))
        self.samples, self.classes = index.to(device), classes.to(device)
        self._index_samples()
        log.info("CRD memory banks: %d samples, %.1f MB", len(index), bank_bytes(len(index), dim) / 1e6)

    def rows(self, index: Tensor) -> Tensor:
        """Bank rows of dataset positions (B,)."""
        if not len(self.samples):
            raise RuntimeError("CRD has no samples yet: call set_samples before the first batch")
        known = (index >= 0) & (index < len(self.row_of))
        rows = self.row_of[index.where(known, 0)].where(known, -1)
        if (rows < 0).any():
            raise ValueError(f"index {index[rows < 0].tolist()} isn't in the set that set_samples was given")
        return rows

    def draw_negatives(self, rows: Tensor) -> Tensor:
        """Rows (B, K) that are uniform over the samples of other classes than each row's own."""
        classes, n = self.classes[rows, None], len(self.samples)
        count = self.class_count[classes]
        draws = torch.randint(2**62, (len(rows), self.num_negatives), device=rows.device)
        draws %= n - count  # uniform to 1e-12, as 2**62 is far above n
        place = self.class_start[classes] + count + draws  # from the end of the own class, round to its start
        return self.by_class[place % n]

    @torch.no_grad()
    def update(self, rows: Tensor, student: Tensor, teacher: Tensor) -> None:
        """Move the rows (B,) of the batch towards the embeddings (B, D), with those of all ranks.

        Every rank must bring a batch of the same size. Of a sample that occurs twice the last one counts.
        """
        rows = _all_ranks(rows)
        order = torch.arange(len(rows), device=rows.device)
        last = ((rows == rows[:, None]) * order).amax(1)
        for bank, embedding in ((self.bank_student, student), (self.bank_teacher, teacher)):
            new = _all_ranks(embedding.to(bank.dtype))[last]
            bank[rows] = F.normalize(self.momentum * bank[rows] + (1 - self.momentum) * new)

    def _index_samples(self) -> None:
        """Look-up tables of `samples` and `classes`: derived, so not in the checkpoint."""
        row_of = self.samples.new_full((int(self.samples.max()) + 1 if len(self.samples) else 0,), -1)
        row_of[self.samples] = torch.arange(len(self.samples), device=row_of.device)
        count = self.classes.bincount()
        self.register_buffer("row_of", row_of, persistent=False)
        self.register_buffer("by_class", self.classes.argsort(stable=True), persistent=False)
        self.register_buffer("class_count", count, persistent=False)
        self.register_buffer("class_start", count.cumsum(0) - count, persistent=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("bank_student", "bank_teacher", "samples", "classes"):
            buffer, saved = getattr(self, name), state_dict.get(prefix + name)
            if saved is not None and saved.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._index_samples()


class CRDLoss(nn.Module):
    r"""Contrastive representation distillation (Tian et al., arXiv:1910.10699), as in the published code.

    .. math:: -\frac1B \sum_{sides} \sum_b \left[ \ln \frac{p_{b0}}{p_{b0} + K/n}
        + \sum_{k=1}^K \ln \frac{K/n}{p_{bk} + K/n} \right], \quad p = \exp(v \cdot m / T) / Z

    v are the embeddings (linear and of unit length) of one side, m the rows of the other side's memory: that
    of the sample itself (k = 0) and of K negatives. Z is n times the mean exp(v . m / T) of the first batch,
    then constant. After scoring, in training mode, the rows of the batch move to the new embeddings. The
    teacher's head is trained as well, so give the parameters of this module to the optimizer.

    The scores of all n samples come from one product (B, D) x (D, n): to gather (B, K, D) rows, as published,
    takes 537 MB a side at B = 64, K = 16384, D = 128, the product 13 MB at n = 50000.

    Example:
        >>> crd = CRDLoss(6, 7, feature_dim=4, num_negatives=8)
        >>> crd.set_samples(torch.arange(20), torch.arange(20) % 5)
        >>> crd(torch.randn(3, 6), torch.randn(3, 7), torch.tensor([0, 9, 4])).shape
        torch.Size([])
    """

    Z: Tensor  # (2,): student's and teacher's side, NaN before the first batch

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        feature_dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: Negatives = "class",
    ) -> None:
        """Build the heads and an empty memory.

        Args:
            student_dim: width of the student's embedding (flattened).
            teacher_dim: width of the teacher's.
            feature_dim: D.
            num_negatives: K.
            temperature: T.
            momentum: share of the old row in a new memory row.
            negatives: "class" draws from the samples of other classes, "instance" from all other samples.

        Raises:
            ValueError: negatives is neither of the two.
        """
        super().__init__()
        check_positive(temperature=temperature)
        check_whole(student_dim=student_dim, teacher_dim=teacher_dim, feature_dim=feature_dim)
        self.temperature = temperature
        self.student_head = nn.Linear(student_dim, feature_dim)
        self.teacher_head = nn.Linear(teacher_dim, feature_dim)
        self.memory = ContrastMemory(feature_dim, num_negatives, momentum, negatives)
        self.register_buffer("Z", torch.full((2,), torch.nan))

    def set_samples(self, index: Tensor, labels: Tensor | None = None) -> None:
        """Size the memory for a set, before training or loading; it starts anew.

        Args:
            index: (n,) int64 dataset positions, such as those of a 5 % subset: negatives are from it alone.
            labels: (n,) int64, needed by class negatives.

        Raises:
            ValueError: a position occurs twice, labels are missing, or all samples are of one class.
        """
        self.memory.set_samples(index, labels)
        self.Z.fill_(torch.nan)

    def forward(
        self,
        student_embedding: Tensor,
        teacher_embedding: Tensor,
        index: Tensor,
        contrast_rows: Tensor | None = None,
    ) -> Tensor:
        """Sum of both sides' losses.

        Args:
            student_embedding: (B, ...), flattened to (B, student_dim).
            teacher_embedding: (B, ...), flattened to (B, teacher_dim).
            index: (B,) int64 dataset positions.
            contrast_rows: (B, K) memory rows of the negatives (row i is that of `index[i]` in set_samples);
                drawn if None.

        Raises:
            RuntimeError: set_samples wasn't called.
            ValueError: a position isn't in the set.
        """
        rows = self.memory.rows(index)
        if contrast_rows is None:
            contrast_rows = self.memory.draw_negatives(rows)
        columns = torch.cat([rows[:, None], contrast_rows], dim=1)  # (B, K + 1), the positive first
        student = self.student_head(student_embedding.flatten(1))
        teacher = self.teacher_head(teacher_embedding.flatten(1))
        return self._contrast(student, teacher, rows, columns)

    @full_precision
    def _contrast(self, student: Tensor, teacher: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        student, teacher = F.normalize(student), F.normalize(teacher)
        loss = self._side_loss(student, self.memory.bank_teacher, columns, self.Z[0])
        loss = loss + self._side_loss(teacher, self.memory.bank_student, columns, self.Z[1])
        if self.training:
            self.memory.update(rows, student.detach(), teacher.detach())
        return loss

    def _side_loss(self, embedding: Tensor, bank: Tensor, columns: Tensor, Z: Tensor) -> Tensor:
        # Differentiated at once, because the bank is overwritten before backward: the value is the loss,
        # the gradient that of <embedding, d loss / d embedding>. It also frees the (B, n) scores here.
        with torch.enable_grad():
            leaf = embedding.detach().requires_grad_()
            loss = self._noise_contrast(leaf, bank, columns, Z)
            (gradient,) = torch.autograd.grad(loss, leaf)
        return loss.detach() + ((embedding - embedding.detach()) * gradient).sum()

    def _noise_contrast(self, embedding: Tensor, bank: Tensor, columns: Tensor, Z: Tensor) -> Tensor:
        (batch, width), n = columns.shape, len(bank)
        scores = (embedding / self.temperature @ bank.T).gather(1, columns)
        if Z.isnan():
            first = scores.detach().exp().mean() * n
            Z.copy_(_all_ranks(first[None]).mean())
        noise = (width - 1) / n
        # x = ln(p / noise): -ln(noise / (p + noise)) = softplus(x), -ln(p / (p + noise)) = softplus(x) - x
        logits = scores - (Z * (noise + EPS)).log()
        loss = (F.softplus(logits).sum() - logits[:, 0].sum()) / batch
        return loss + (width - 1) * math.log1p(EPS / noise)


def _all_ranks(tensor: Tensor) -> Tensor:
    """The tensors of all processes, joined along the first axis; the tensor itself in a single process."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
