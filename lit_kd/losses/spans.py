"""Relations of neighbouring tokens inside a span (MGSR, Liu et al., arXiv:2407.10068)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lit_kd.checks import check_choice, check_positive
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
    check_choice(get_args(SpanNorm), norm=norm)
    check_same_shape(student_probs, teacher_probs)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be (P, 2), rows (sample, k), got {tuple(pairs.shape)}")
    sample, k = pairs.unbind(1)
    batch, length = student_probs.shape[:2]
    if (torch.stack([sample, batch - 1 - sample, k, length - 2 - k]) < 0).any():
        raise ValueError(f"pairs must have a sample below {batch} and k, k + 1 below {length}, got {pairs.tolist()}")
    student, teacher = (probs[sample, k] * probs[sample, k + 1] for probs in (student_probs, teacher_probs.detach()))
    return _distances(student, teacher, norm).sum() / max(len(pairs), 1)


@full_precision
def span_relations_of_rows(
    student_logits: Tensor,
    teacher_logits: Tensor,
    pairs: Tensor,
    temperature: float = 1.0,
    norm: SpanNorm = "squared",
    weights: Tensor | None = None,
) -> Tensor:
    """Sum over pairs of rows of logits of what :func:`span_relation_loss` is the mean of.

    For :func:`~lit_kd.losses.chunked_loss`: with the states of the rows of each pair gathered, the distributions of all
    tokens never exist at once.

    Args:
        student_logits: (M, V).
        teacher_logits: (M, V).
        pairs: (P, 2) int64, two rows each, of neighbours in a span. P = 0 gives 0 with a graph.
        temperature: T > 0, which divides both logits.
        norm: as in :func:`span_relation_loss`.
        weights: of the pairs in the sum, (P,); None: 1 each.

    Raises:
        ValueError: shapes that do not fit, a pair outside of the rows, a temperature that isn't positive, or an unknown
            norm.

    Example:
        >>> from lit_kd.losses import chunked_loss
        >>> states, other, head = torch.randn(5, 4), torch.randn(5, 4), torch.nn.Linear(4, 9)
        >>> pairs = torch.tensor([[0, 1], [1, 2], [3, 4]])
        >>> def loss(logits, rows):  # rows are those of the gathered states, two to a pair
        ...     local = torch.arange(len(logits)).view(-1, 2)
        ...     return span_relations_of_rows(logits, head(other[pairs.flatten()[rows]]), local)
        >>> whole = span_relations_of_rows(head(states), head(other), pairs)
        >>> torch.allclose(chunked_loss(loss, states[pairs.flatten()], head, chunk=4), whole)  # an even chunk
        True
    """
    check_choice(get_args(SpanNorm), norm=norm)
    check_positive(temperature=temperature)
    check_same_shape(student_logits, teacher_logits)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be (P, 2), two rows each, got {tuple(pairs.shape)}")
    if pairs.numel() and not 0 <= pairs.min() <= pairs.max() < len(student_logits):
        raise ValueError(f"pairs must be of rows below {len(student_logits)}, got {pairs.min()} to {pairs.max()}")
    first, second = pairs.unbind(1)
    student, teacher = (
        probs[first] * probs[second]
        for probs in ((logits / temperature).softmax(1) for logits in (student_logits, teacher_logits.detach()))
    )
    distances = _distances(student, teacher, norm)
    return distances.sum() if weights is None else distances @ weights.to(distances)


def _distances(student: Tensor, teacher: Tensor, norm: SpanNorm) -> Tensor:
    """Between relations (P, V), (P,)."""
    squared = (student - teacher).square()
    distance = squared.mean(1) if norm == "mse" else squared.sum(1)
    return (distance + 1e-12).sqrt() if norm == "l2" else distance  # the root's gradient at 0 is finite
