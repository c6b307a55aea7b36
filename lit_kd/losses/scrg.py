"""Where a student's sequence goes wrong, as its teacher sees it (MGSR, Liu et al., arXiv:2407.10068)."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_kd.losses.divergences import forward_kl


def cognitive_difference(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""How far the two next-token distributions are apart at each position, :math:`d_i = KL(p_i \| q_i)`.

    Both networks have read the student's own sequence up to position i. The published description does not say in which
    direction the divergence is taken: it is the teacher's to the student's here.

    Args:
        student_logits: (B, S, V), the logits that predict the tokens of the sequences, q.
        teacher_logits: (B, S, V), p.
        mask: (B, S), True for tokens of the student's completion.

    Returns:
        float32 (B, S), 0 where masked; no gradient.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> student, teacher = torch.tensor([[[0.1, 0.2, 0.7]]]).log(), torch.tensor([[[0.7, 0.2, 0.1]]]).log()
        >>> cognitive_difference(student, teacher)
        tensor([[1.1675]])
    """
    with torch.no_grad():
        return forward_kl(student_logits, teacher_logits, mask, reduction="none")


def error_index(differences: Tensor, student_tokens: Tensor, teacher_tokens: Tensor, mask: Tensor) -> Tensor:
    r"""The position at which each sequence is corrected, or -1 where there is none.

    .. math:: j = argmax_i \{ d_i : y^S_i \neq y^T_i \}

    Of equal differences the first one counts. A large difference where both choose the same token is no error.

    Args:
        differences: d, (B, S).
        student_tokens: the sequences, int64 (B, S).
        teacher_tokens: the teacher's choice at each of their positions, int64 (B, S).
        mask: True for tokens of the completion, the end token among them; bool (B, S).

    Returns:
        int64 (B,).

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> d = torch.tensor([[1.1675, 0.0375, 0.4394, 0.0367]])
        >>> error_index(d, torch.tensor([[0, 1, 0, 2]]), torch.tensor([[0, 1, 2, 2]]), torch.ones(1, 4).bool())
        tensor([2])
    """
    shapes = {tuple(one.shape) for one in (differences, student_tokens, teacher_tokens, mask)}
    if len(shapes) > 1 or differences.ndim != 2:
        raise ValueError(f"differences, tokens and mask must be of one shape (B, S), got {sorted(shapes)}")
    eligible = mask.bool() & (student_tokens != teacher_tokens)
    if not differences.shape[1]:
        return torch.full((len(differences),), -1, device=differences.device)
    largest = differences.masked_fill(~eligible, -torch.inf).argmax(1)
    return torch.where(eligible.any(1), largest, -1)
