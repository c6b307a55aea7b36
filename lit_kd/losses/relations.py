"""Losses between the relations of the samples of a batch, from embeddings (B, D); widths D may differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_kd.checks import check_not_negative
from lit_kd.losses.shared import check_same_batch, check_same_shape, full_precision


@full_precision
def pkt_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""Probabilistic knowledge transfer (Passalis and Tefas, arXiv:1803.10837).

    .. math:: mean_{ij} \, p_{ij} \ln \frac{p_{ij} + \epsilon}{q_{ij} + \epsilon}, \quad
        p_{ij} = (1 + \cos(t_i, t_j)) / \sum_k (1 + \cos(t_i, t_k))

    q is the same of the student, epsilon = 1e-7. As in the published code the mean runs over all B * B pairs,
    the diagonal included, so it is the mean KL of the rows (nats) divided by B.

    Args:
        student_embedding: (B, D_s).
        teacher_embedding: (B, D_t).

    Raises:
        ValueError: the batch sizes differ.

    Example:
        >>> pkt_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [-1.0]]))
        tensor(0.2027)
    """
    check_same_batch(student_embedding, teacher_embedding)
    q, p = _neighbour_probabilities(student_embedding), _neighbour_probabilities(teacher_embedding)
    return (p * ((p + 1e-7) / (q + 1e-7)).log()).mean()


def _neighbour_probabilities(embedding: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)
    unit = embedding / (norm + 1e-7)
    similarity = (1 + unit @ unit.T) / 2
    return similarity / similarity.sum(1, keepdim=True)


@full_precision
def rkd_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> Tensor:
    r"""Relational knowledge distillation (Park et al., arXiv:1904.05068), l the smooth L1 loss.

    .. math:: w_d \, mean_{ij} \, l(d^s_{ij}, d^t_{ij}) + w_a \, mean_{ijk} \, l(a^s_{ijk}, a^t_{ijk})

    d are distances divided by their mean over different samples, a_ijk the cosine of the angle at sample i
    between j and k. As in the published code the means run over all B * B pairs and B * B * B triples, the
    degenerate ones included; these count as 0 and pass no gradient. A batch of one gives 0 with a graph.

    Args:
        student_embedding: (B, D_s).
        teacher_embedding: (B, D_t).
        distance_weight: w_d.
        angle_weight: w_a.

    Raises:
        ValueError: the batch sizes differ.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> rkd_loss(2 * points + 1, points) < 1e-6  # unmoved by scale and shift
        tensor(True)
    """
    check_same_batch(student_embedding, teacher_embedding)
    check_not_negative(distance_weight=distance_weight, angle_weight=angle_weight)
    student_distances, student_angles = _distances_and_angles(student_embedding)
    teacher_distances, teacher_angles = _distances_and_angles(teacher_embedding)
    distance_loss = F.smooth_l1_loss(student_distances, teacher_distances)
    angle_loss = F.smooth_l1_loss(student_angles, teacher_angles)
    return distance_weight * distance_loss + angle_weight * angle_loss


def _distances_and_angles(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (B, B) over their mean, and cosines (B, B, B) of the angles at the first sample."""
    batch = len(embedding)
    difference = embedding.unsqueeze(0) - embedding.unsqueeze(1)  # (B, B, D)
    squared = difference.square().sum(2)
    # Neither sqrt nor the unit vector has a gradient at 0: coincident samples are clamped and masked
    distance = squared.clamp(min=1e-12).sqrt()
    unit = difference * distance.reciprocal().where(squared > 1e-12, 0).unsqueeze(2)
    distance = distance * (1 - torch.eye(batch, dtype=distance.dtype, device=distance.device))
    mean = distance.sum() / max(batch * (batch - 1), 1)
    return distance / mean.clamp(min=1e-12), unit @ unit.transpose(1, 2)


@full_precision
def correlation_congruence_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    r"""Correlation congruence (Peng et al., arXiv:1904.01802) in the neighbour form of RepDistiller.

    .. math:: \frac{1}{B - 1} \sum_{i < B} \delta_i \cdot \delta_{i + 1}, \quad \delta = |s - t|

    It depends on the order of the batch, and is not the paper's kernel. A batch of one gives 0 with a graph.

    Args:
        student_embedding: (B, D).
        teacher_embedding: (B, D).

    Raises:
        ValueError: the two shapes differ.

    Example:
        >>> correlation_congruence_loss(torch.zeros(3, 2), torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
        tensor(25.)
    """
    check_same_shape(student_embedding, teacher_embedding)
    delta = (student_embedding - teacher_embedding).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)
