"""The queue of words, the head that predicts them, and the moving teacher."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from golden_data import load_golden
from scipy import stats
from torch import nn

from lit_kd.losses import WordDistances
from lit_kd.models import BoWHead, EMATeacher, Vocabulary
from lit_kd.models.vocabulary import gather_ranks, mean_over_ranks


def marked(rows: range, channels: int = 4) -> torch.Tensor:
    """Words that are told apart by their value."""
    return torch.tensor(rows).float()[:, None].expand(-1, channels)


# Golden


@pytest.mark.parametrize("kind", ["local_average", "no_averaging", "global_average"])
def test_update_of_the_official_code(kind: str) -> None:
    golden = load_golden("obow_vocabulary_update_types")
    kernel = {"local_average": 3, "no_averaging": 1, "global_average": None}[kind]
    vocabulary = Vocabulary(32, 16, border=1, pool_kernel=kernel)
    vocabulary.words.copy_(golden["vocabulary_initial"])
    vocabulary.pointer.fill_(28)
    places = 9 if kernel == 3 else 25
    uniforms = (golden[f"locations_{kind}"] + 0.5) / places
    vocabulary.push(vocabulary.sample(vocabulary.crop(golden["features"]), uniforms))
    torch.testing.assert_close(vocabulary.words, golden[f"vocabulary_{kind}"], rtol=0, atol=1e-6)
    assert vocabulary.pointer == golden[f"ptr_{kind}"]


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_two_batches_of_the_official_code(assignment: str) -> None:
    golden = load_golden(f"obow_bow_{assignment}_max")
    vocabulary = Vocabulary(32, 16)
    vocabulary.words.copy_(golden["vocabulary_initial"])
    vocabulary.pointer.fill_(28)
    inverse_delta = 15.0 if assignment == "soft" else None
    for batch in (1, 2):
        maps = vocabulary.crop(golden[f"features_{batch}"])
        distances = WordDistances(maps, vocabulary.words)
        words = vocabulary.sample(maps, (golden[f"locations_{batch}"] + 0.5) / 9)
        target = distances.target(inverse_delta, vocabulary.stage(words, distances.nearest.mean()))
        torch.testing.assert_close(target, golden[f"bow_{batch}"], rtol=0, atol=1e-5)
        vocabulary.commit()
        torch.testing.assert_close(vocabulary.words, golden[f"vocabulary_after_{batch}"], rtol=0, atol=1e-6)
        torch.testing.assert_close(vocabulary.mean_distance, golden[f"mu_after_{batch}"][0], rtol=1e-6, atol=0)
        assert vocabulary.pointer == golden[f"ptr_after_{batch}"]
    distances = WordDistances(vocabulary.crop(golden["features_1"]), vocabulary.words)
    target = distances.target(inverse_delta, vocabulary.mean_distance)
    torch.testing.assert_close(target, golden["bow_eval_features_1_after_2"], rtol=0, atol=1e-5)


def load_head(golden: dict[str, torch.Tensor], level: int) -> BoWHead:
    head = BoWHead(golden[f"fc_weight_{level}"].shape[1], 10)
    parts = {"expand.weight": "fc_weight", "norm.weight": "bn_weight", "norm.bias": "bn_bias"}
    parts |= {"project.weight": "last_weight", "project.bias": "last_bias"}
    state = {own: golden[f"{theirs}_{level}"] for own, theirs in parts.items()}
    head.load_state_dict({**head.state_dict(), **state})
    return head


@pytest.mark.parametrize("level", [0, 1])
def test_head_of_the_official_code(level: int) -> None:
    golden = load_golden("obow_predictor_loss")
    head, words = load_head(golden, level), golden[f"words_level_{level}"]
    features = torch.cat([golden["features_group_0"], golden["features_group_1"]])
    expected = torch.cat([golden[f"logits_group_{group}_level_{level}"] for group in (0, 1)])
    torch.testing.assert_close(head(features, words), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.norm.running_mean, golden[f"bn_running_mean_{level}"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.norm.running_var, golden[f"bn_running_var_{level}"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        head.eval().weights(words), golden[f"word_weights_eval_level_{level}"], rtol=1e-5, atol=1e-6
    )
    head = load_head(golden, level)
    torch.testing.assert_close(head.weights(words), golden[f"word_weights_level_{level}"], rtol=1e-5, atol=1e-6)


def test_momentum_and_average_of_the_official_code() -> None:
    golden = load_golden("obow_momentum_schedule")
    teacher = EMATeacher(nn.Linear(1, 1), total_steps=100)
    momentum = torch.tensor([teacher.momentum_at(step) for step in range(101)], dtype=torch.float64)
    torch.testing.assert_close(momentum, golden["momentum"], rtol=1e-6, atol=0)  # float32 there

    student = nn.ParameterList([golden["teacher_a_initial"].clone(), golden["teacher_b_initial"].clone()])
    teacher = EMATeacher(student, total_steps=4)
    for step in range(3):
        with torch.no_grad():
            for name, parameter in zip("ab", student, strict=True):
                parameter.copy_(golden[f"student_{name}_{step}"])
        teacher.update(student)
        for name, parameter in zip("ab", teacher.module, strict=True):
            torch.testing.assert_close(parameter.data, golden[f"teacher_{name}_after_{step}"], rtol=0, atol=1e-6)


# Vocabulary


def test_first_words() -> None:
    torch.manual_seed(0)
    words = Vocabulary(2000, 50).words
    assert (words >= 0).all()
    assert (words == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)
    assert words.mean().item() == pytest.approx(1 / math.sqrt(2 * math.pi), abs=0.01)
    assert words.norm(dim=1).mean().item() == pytest.approx(5, abs=0.1)  # sqrt(C / 2), not 1


def test_exactly_the_oldest_rows_change() -> None:
    vocabulary = Vocabulary(12, 4)
    first = vocabulary.words.clone()
    for step in range(3):
        before = vocabulary.words.clone()
        vocabulary.push(marked(range(100 + 4 * step, 104 + 4 * step)))
        rows = torch.arange(4 * step, 4 * step + 4)
        others = [row for row in range(12) if row not in rows.tolist()]
        assert torch.equal(vocabulary.words[rows], marked(range(100 + 4 * step, 104 + 4 * step)))
        assert torch.equal(vocabulary.words[others], before[others])
        assert vocabulary.pointer == 4 * (step + 1) % 12
        left = (vocabulary.words[:, None] == first).all(2).any(0).sum()
        assert left == 12 - 4 * (step + 1)


def test_push_wraps_around_and_loses_nothing() -> None:
    vocabulary = Vocabulary(10, 4)
    for step in range(3):
        vocabulary.push(marked(range(4 * step, 4 * step + 4)))
    assert vocabulary.words[:, 0].tolist() == [10, 11, 2, 3, 4, 5, 6, 7, 8, 9]
    assert vocabulary.pointer == 2
    vocabulary.push(marked(range(20, 30)))
    assert vocabulary.words[:, 0].tolist() == [28, 29, 20, 21, 22, 23, 24, 25, 26, 27]


def test_more_words_than_rows_is_an_error_before_anything_changes() -> None:
    vocabulary = Vocabulary(10, 4)
    before = vocabulary.words.clone()
    with pytest.raises(ValueError, match="num_words=10 is smaller than the 11 images of a step"):
        vocabulary.push(marked(range(11)))
    vocabulary.stage(marked(range(6)), torch.ones(()))
    with pytest.raises(ValueError, match="num_words=10 is smaller than the 12 images"):
        vocabulary.stage(marked(range(6)), torch.ones(()))
    assert torch.equal(vocabulary.words, before)


@pytest.mark.parametrize(("border", "kernel"), [(1, 3), (0, 2), (1, 1), (0, None)])
def test_new_words_are_means_at_a_place_of_their_own_image(border: int, kernel: int | None) -> None:
    vocabulary = Vocabulary(16, 5, border, kernel)
    maps = torch.rand(6, 5, 7, 7)
    cropped = maps[:, :, border : 7 - border, border : 7 - border]
    words = vocabulary.sample(vocabulary.crop(maps))
    size = kernel or cropped.shape[-1]
    windows = cropped.unfold(2, size, 1).unfold(3, size, 1).mean((4, 5)).flatten(2)  # (B, C, places)
    matches = torch.isclose(windows, words[:, :, None], atol=1e-6).all(1)
    assert (matches.sum(1) == 1).all()


def test_border_does_not_matter() -> None:
    vocabulary = Vocabulary(16, 5)
    maps = torch.rand(2, 5, 7, 7)
    changed = torch.rand(2, 5, 7, 7)
    changed[:, :, 1:-1, 1:-1] = maps[:, :, 1:-1, 1:-1]
    uniforms = torch.rand(2)
    assert torch.equal(vocabulary.crop(changed), vocabulary.crop(maps))
    words = [vocabulary.sample(vocabulary.crop(m), uniforms) for m in (maps, changed)]
    assert torch.equal(*words)


@pytest.mark.parametrize("size", [12, 5])
def test_places_are_uniform(size: int) -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary(16, 1)
    places = (size - 2) ** 2
    values = torch.arange(size * size).float().view(1, 1, size, size).expand(100 * places, -1, -1, -1)
    _, counts = vocabulary.sample(values).unique(return_counts=True)
    assert len(counts) == places
    assert stats.chisquare(counts).pvalue > 1e-3


def test_uniforms_reach_the_first_and_the_last_place() -> None:
    vocabulary = Vocabulary(16, 1, border=0, pool_kernel=1)
    maps = torch.arange(1000000).float().view(1, 1, 1000, 1000).expand(2, -1, -1, -1)
    uniforms = torch.tensor([0.0, 1 - 2**-24])
    assert vocabulary.sample(maps, uniforms).flatten().tolist() == [0, 999999]


def test_mean_distance_of_one_step_and_of_micro_batches() -> None:
    vocabulary = Vocabulary(16, 4)
    provisional = vocabulary.stage(marked(range(2)), torch.tensor(3.0))
    assert vocabulary.mean_distance == 0.5 and vocabulary.pointer == 0
    assert provisional.item() == pytest.approx(0.495 + 0.03)
    assert vocabulary.stage(marked(range(2, 4)), torch.tensor(5.0)).item() == pytest.approx(0.495 + 0.04)
    vocabulary.commit()
    assert vocabulary.mean_distance.item() == pytest.approx(0.495 + 0.04)
    assert vocabulary.words[:4, 0].tolist() == [0, 1, 2, 3]
    assert vocabulary.pointer == 4
    before = copy.deepcopy(vocabulary.state_dict())
    vocabulary.commit()  # nothing is staged
    vocabulary.stage(marked(range(2)), torch.tensor(3.0))
    vocabulary.discard()
    vocabulary.commit()
    assert all(torch.equal(vocabulary.state_dict()[key], value) for key, value in before.items())


def test_buffers_move_and_are_saved() -> None:
    vocabulary = Vocabulary(16, 4)
    assert set(vocabulary.state_dict()) == {"words", "pointer", "mean_distance"}
    moved = vocabulary.to("meta")
    assert all(buffer.device.type == "meta" for buffer in moved.buffers())


def test_gathering_in_a_single_process_is_the_identity() -> None:
    rows = torch.rand(3, 2)
    assert gather_ranks(rows) is rows and mean_over_ranks(rows) is rows


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Vocabulary(4, 4).crop(torch.zeros(1, 4, 4, 9)), "4x9 map, but border=1 and pool_kernel=3 need .* 5x5"),
        (lambda: EMATeacher(nn.Linear(1, 1)).update(nn.Linear(1, 1)), "total_steps=None"),
        (
            lambda: EMATeacher(nn.Linear(1, 1), 0.9, "constant").update(nn.Linear(2, 1)),
            "not of its teacher's structure",
        ),
    ],
)
def test_bad_arguments_say_so(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# Head


def test_weights_are_unit_rows_and_bound_the_logits() -> None:
    head, words, features = BoWHead(5, 7, kappa=4.0), torch.rand(20, 5), torch.randn(6, 7)
    weights = head.weights(words)
    torch.testing.assert_close(weights.norm(dim=1), torch.ones(20))
    logits = head(features, words)
    assert (logits.abs() <= 4 * features.norm(dim=1, keepdim=True) * (1 + 1e-5)).all()
    torch.testing.assert_close(logits, 4 * features @ weights.T)
    torch.testing.assert_close(head.weights(words * torch.rand(20, 1).add(0.1)), weights)  # L2 on the input


def test_permuted_words_permute_logits() -> None:
    head, words, features, order = BoWHead(5, 7), torch.rand(20, 5), torch.randn(6, 7), torch.randperm(20)
    torch.testing.assert_close(head(features, words[order]), head(features, words)[:, order])


@pytest.mark.parametrize("learn_kappa", [True, False])
def test_gradients_of_the_head(learn_kappa: bool) -> None:
    head, words = BoWHead(5, 7, learn_kappa=learn_kappa), torch.rand(20, 5)
    F.cross_entropy(head(torch.randn(6, 7), words), torch.arange(6)).backward()
    assert (head.kappa.grad is not None) is learn_kappa
    assert all(p.grad.abs().sum() > 0 for name, p in head.named_parameters() if name not in ("kappa", "project.bias"))
    assert words.grad is None


# EMA


def moved(student: nn.Module) -> nn.Module:
    """The student after an optimizer step, so to speak."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
    for name, buffer in student.named_buffers():
        buffer.add_(1 if "num" in name else 0.5)
    return student


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def test_momentum_over_the_whole_training() -> None:
    teacher = EMATeacher(network(), total_steps=1000)
    values = [teacher.momentum_at(step) for step in (0, 250, 500, 750, 1000, 1500)]
    assert values == pytest.approx([0.99, 0.991464, 0.995, 0.998536, 1, 1], abs=1e-6)
    steps = [teacher.momentum_at(step) for step in range(1000)]
    assert steps == sorted(steps) and steps[-1] < 1
    assert EMATeacher(network(), 0.9, "constant").momentum_at(10**6) == 0.9


def test_update_is_the_average_in_place() -> None:
    student = network()
    teacher = EMATeacher(student, 0.9, "constant")
    for own, theirs in zip(teacher.module.parameters(), student.parameters(), strict=True):
        assert torch.equal(own, theirs) and own.data_ptr() != theirs.data_ptr()
    before = [p.clone() for p in teacher.module.parameters()]
    storage = [p.data_ptr() for p in teacher.module.parameters()]
    teacher.update(student)  # a teacher that equals its student stays
    assert all(torch.equal(p, q) for p, q in zip(teacher.module.parameters(), before, strict=True))
    teacher.update(moved(student))
    for own, old, theirs in zip(teacher.module.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(own.data, 0.9 * old + 0.1 * theirs.data, rtol=0, atol=1e-6)
    assert [p.data_ptr() for p in teacher.module.parameters()] == storage
    assert teacher.clock == 2


@pytest.mark.parametrize("buffers", ["none", "copy", "ema"])
def test_buffers(buffers: str) -> None:
    student = network()
    teacher = EMATeacher(student, 0.75, "constant", buffers=buffers)
    before = {name: buffer.clone() for name, buffer in teacher.module.named_buffers()}
    teacher.update(moved(student))
    for name, buffer in teacher.module.named_buffers():
        theirs = student.get_buffer(name)
        expected = {"none": before[name], "copy": theirs, "ema": 0.75 * before[name] + 0.25 * theirs}[buffers]
        torch.testing.assert_close(buffer, theirs if buffers == "ema" and "num" in name else expected)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_teacher_is_frozen_and_in_the_mode_it_was_told(mode: str) -> None:
    teacher = EMATeacher(network(), mode=mode)
    parent = nn.ModuleList([teacher]).train()
    assert {part.training for part in teacher.modules()} == {mode == "train"}
    before = teacher.module[1].running_mean.clone()
    output = teacher(torch.randn(2, 3, 8, 8))
    assert not output.requires_grad and not any(p.requires_grad for p in teacher.parameters())
    assert torch.equal(teacher.module[1].running_mean, before) is (mode == "eval")
    parent.eval()
    assert not any(part.training for part in teacher.modules())


def test_clock_is_saved_and_goes_on() -> None:
    student = network()
    straight, interrupted = (EMATeacher(student, total_steps=10) for _ in range(2))
    for step in range(6):
        if step == 3:
            state = interrupted.state_dict()
            assert "clock" in state
            interrupted = EMATeacher(network(), total_steps=10)
            interrupted.load_state_dict(state)
        moved(student)
        straight.update(student)
        interrupted.update(student)
    assert all(torch.equal(value, straight.state_dict()[key]) for key, value in interrupted.state_dict().items())
