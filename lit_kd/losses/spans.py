"""Relations of neighbouring tokens inside a span (MGSR, Liu et al., arXiv:2407.10068)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lit_kd.losses.shared import check_same_shape, full_precision

SpanNorm = Literal["squared", "l2", "mse"]


@full_precision
def span_relation_loss(
    student_probs: Tensor, teacher_probs: Tensor, pairs: Tensor, norm: SpanNorm = "squared"
) -> Tensor:
    r"""Distance between the span relations of teacher and student.

    .. math:: \frac{1}{|E|} \sum_{(k, k+1) \in E} \| p_k \circ p_{k+1} - q_k \circ q_{k+1} \|^2

    E are the neighbours inside the spans of the batch; p_k and q_k are the distributions that predict token k, of
    teacher and student. The paper's description leaves open which norm it is. The gradient reaches the student only.

    Args:
        student_probs: (B, S, V).
        teacher_probs: (B, S, V).
        pairs: (P, 2) int64, rows (sample, k): positions k and k + 1 are of one span. P = 0 gives 0 with a graph.
        norm: "squared" as above; "l2", its root; "mse", the squared one divided by V, which for a real vocabulary is
            tiny.

    Raises:
        ValueError: shapes that do not fit, a pair outside of the batch, or an unknown norm.

    Example:
        >>> teacher = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]])
        >>> student = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]])
        >>> span_relation_loss(student, teacher, torch.tensor([[0, 0]]))
        tensor(0.0050)
    """
    if norm not in ("squared", "l2", "mse"):
        raise ValueError(f'norm must be "squared", "l2" or "mse", got {norm!r}')
    check_same_shape(student_probs, teacher_probs)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be (P, 2), rows (sample, k), got {tuple(pairs.shape)}")
    sample, k = pairs.unbind(1)
    batch, length = student_probs.shape[:2]
    if (torch.stack([sample, batch - 1 - sample, k, length - 2 - k]) < 0).any():
        raise ValueError(f"pairs must have a sample below {batch} and k, k + 1 below {length}, got {pairs.tolist()}")
    student, teacher = (probs[sample, k] * probs[sample, k + 1] for probs in (student_probs, teacher_probs.detach()))
    squared = (student - teacher).square()  # (P, V)
    distance = squared.mean(1) if norm == "mse" else squared.sum(1)
    if norm == "l2":
        distance = (distance + 1e-12).sqrt()  # its gradient at 0 is finite
    return distance.sum() / max(len(pairs), 1)
