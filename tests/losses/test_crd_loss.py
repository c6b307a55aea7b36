"""Memory, negatives, checkpoint and ranks of CRD; its numbers are in test_golden_losses."""

import logging
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from lit_kd.losses import CRDLoss, bank_bytes
from lit_kd.losses.crd import Negatives

POSITIONS = torch.tensor([90, 3, 17, 44, 5, 61, 28, 70])  # a sparse subset, not in order
LABELS = torch.tensor([1, 0, 1, 2, 0, 1, 2, 2])


def build(negatives: Negatives = "class", num_negatives: int = 16) -> CRDLoss:
    torch.manual_seed(0)
    crd = CRDLoss(6, 7, feature_dim=4, num_negatives=num_negatives, negatives=negatives)
    crd.set_samples(POSITIONS, LABELS)
    return crd


def batch(index: Tensor, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(len(index), 6, generator=generator),
        torch.randn(len(index), 7, generator=generator),
        index,
    )


def test_both_heads_are_trained() -> None:
    crd = build()
    crd(*batch(POSITIONS[:3])).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in crd.parameters())


def test_class_negatives_are_uniform_over_other_classes() -> None:
    memory = build(num_negatives=40_000).memory
    rows = torch.arange(8)
    drawn = memory.draw_negatives(rows)
    for row in rows:
        share = drawn[row].bincount(minlength=8) / drawn.shape[1]
        other = LABELS.ne(LABELS[row])
        torch.testing.assert_close(share, other / other.sum(), rtol=0, atol=0.015)
        assert share[~other].sum() == 0


def test_instance_negatives_are_any_other_sample() -> None:
    drawn = build("instance", num_negatives=1000).memory.draw_negatives(torch.tensor([2]))
    assert set(drawn.flatten().tolist()) == set(range(8)) - {2}


def test_first_rows_are_as_published_and_sized() -> None:
    memory = build().memory
    bound = (3 / 4) ** 0.5
    for bank in (memory.bank_student, memory.bank_teacher):
        assert bank.shape == (8, 4) and bank.abs().max() <= bound
    assert not torch.equal(memory.bank_student, memory.bank_teacher)


def test_only_the_rows_of_the_batch_move() -> None:
    crd = build()
    before = crd.memory.bank_student.clone()
    crd(*batch(torch.tensor([17, 70])))
    moved = (crd.memory.bank_student != before).any(1)
    assert moved.nonzero().flatten().tolist() == [2, 7]
    torch.testing.assert_close(crd.memory.bank_student[moved].norm(dim=1), torch.ones(2))
    crd.eval()
    before = crd.memory.bank_student.clone()
    crd(*batch(torch.tensor([17, 70])))
    assert torch.equal(crd.memory.bank_student, before)


def test_of_a_repeated_index_the_last_counts() -> None:
    once, twice = build(), build()
    student, teacher, index = batch(torch.tensor([3, 17, 3]))
    once(student[1:], teacher[1:], index[1:])
    twice(student, teacher, index)
    torch.testing.assert_close(once.memory.bank_student, twice.memory.bank_student)
    torch.testing.assert_close(once.memory.bank_teacher, twice.memory.bank_teacher)


def test_z_is_set_by_the_first_batch_only() -> None:
    crd = build()
    assert crd.Z.isnan().all()
    crd(*batch(POSITIONS[:3]))
    first = crd.Z.clone()
    crd(*batch(POSITIONS[3:], seed=2))
    assert first.isfinite().all() and torch.equal(crd.Z, first)


def test_gradient_is_that_of_the_old_bank() -> None:
    crd = build().double()
    student, teacher, index = batch(POSITIONS[:3])
    contrast = crd.memory.draw_negatives(torch.arange(3))
    crd.Z.fill_(1e3)
    crd.eval()  # the bank stays, so that finite differences are of one function
    inputs = (student.double().requires_grad_(), teacher.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda s, t: crd(s, t, index, contrast), inputs)
    gradients = []
    for mode in (False, True):
        gradients.append(torch.autograd.grad(crd.train(mode)(*inputs, index, contrast), inputs)[0])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    crd = build()
    with torch.autocast("cpu", dtype=dtype):
        loss = crd(*batch(POSITIONS[:3]))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in crd.parameters())


def test_checkpoint_goes_into_a_fresh_module() -> None:
    trained, fresh = build(), CRDLoss(6, 7, feature_dim=4, num_negatives=16)
    trained(*batch(POSITIONS[:3]))
    fresh.load_state_dict(trained.state_dict())
    results = []
    for crd in (trained, fresh):
        torch.manual_seed(5)
        results.append(crd(*batch(POSITIONS[4:])))
    assert torch.equal(*results)


def test_size_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build()
    assert bank_bytes(8, 4) == 256
    assert [record.message for record in caplog.records] == ["CRD memory banks: 8 samples, 0.0 MB"]


def test_errors() -> None:
    crd = CRDLoss(6, 7, feature_dim=4, num_negatives=8)
    with pytest.raises(RuntimeError, match="call set_samples before the first batch"):
        crd(*batch(POSITIONS[:3]))
    with pytest.raises(ValueError, match='negatives="class" needs labels'):
        crd.set_samples(POSITIONS)
    with pytest.raises(ValueError, match="8 samples are all of one class"):
        crd.set_samples(POSITIONS, LABELS * 0)
    with pytest.raises(ValueError, match="of the same samples, got 8 and 7"):
        crd.set_samples(POSITIONS, LABELS[:7])
    with pytest.raises(ValueError, match="names a dataset position twice"):
        crd.set_samples(POSITIONS * 0, LABELS)
    for outside in (4, -1, 1000):
        with pytest.raises(ValueError, match=rf"index \[{outside}\] isn't in the set"):
            build()(*batch(torch.tensor([3, outside])))


def train_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    crd = build()
    student, teacher, index = batch(POSITIONS[:6])
    part = slice(3 * rank, 3 * rank + 3)
    contrast = torch.arange(8).roll(1).repeat(6, 1)[part]
    crd(student[part], teacher[part], index[part], contrast)
    torch.save((crd.Z, crd.memory.bank_student, crd.memory.bank_teacher), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    spawn(train_rank, args=(str(tmp_path),), nprocs=2)
    single = build()
    single(*batch(POSITIONS[:6]), torch.arange(8).roll(1).repeat(6, 1))
    for rank in range(2):
        for actual, expected in zip(
            torch.load(tmp_path / f"{rank}.pt"),
            (single.Z, single.memory.bank_student, single.memory.bank_teacher),
            strict=True,
        ):
            torch.testing.assert_close(actual, expected)
