"""Where the teacher corrects: the numbers of the specification, ties, padding."""

import pytest
import torch

from lit_kd.losses import cognitive_difference, error_index

TEACHER = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.05, 0.05, 0.9]]).double().log()
STUDENT = torch.tensor([[0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]]).double().log()
WRITTEN = torch.tensor([[0, 1, 0, 2]])
ALL = torch.ones(1, 4).bool()


def differences() -> torch.Tensor:
    return cognitive_difference(STUDENT[None], TEACHER[None])


def test_difference_is_the_teachers_divergence() -> None:
    expected = torch.tensor([[1.167546, 0.037510, 0.439445, 0.036690]]).double()
    torch.testing.assert_close(differences(), expected, rtol=0, atol=1e-6)
    student = STUDENT[None].clone().requires_grad_()
    assert not cognitive_difference(student, TEACHER[None]).requires_grad
    masked = cognitive_difference(STUDENT[None], TEACHER[None], torch.tensor([[False, True, True, True]]))
    assert masked[0, 0] == 0 and masked[0, 2] == differences()[0, 2]


@pytest.mark.parametrize(
    ("teacher", "place"),
    [
        ([0, 1, 2, 2], 2),  # the largest difference is where the tokens are equal
        ([1, 0, 2, 2], 0),
        ([0, 1, 0, 2], -1),
        ([0, 1, 0, 1], 3),
    ],
)
def test_place_of_the_correction(teacher: list[int], place: int) -> None:
    assert error_index(differences(), WRITTEN, torch.tensor([teacher]), ALL).tolist() == [place]


def test_padding_is_never_chosen_and_the_first_of_equals_is() -> None:
    d = torch.tensor([[0.1, 0.3, 0.3, 99.0], [0.1, 0.2, 99.0, 99.0], [5.0, 1.0, 1.0, 1.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    zeros, ones = torch.zeros(3, 4).long(), torch.ones(3, 4).long()
    assert error_index(d, zeros, ones, mask).tolist() == [1, 1, -1]
    assert error_index(d[:, :0], zeros[:, :0], ones[:, :0], mask[:, :0]).tolist() == [-1, -1, -1]


def test_shapes() -> None:
    with pytest.raises(ValueError, match="must be of one shape"):
        error_index(torch.zeros(1, 3), WRITTEN, WRITTEN, ALL)
