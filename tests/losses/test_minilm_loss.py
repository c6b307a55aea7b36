"""Relations of MiniLM: numbers worked out by hand, the reference implementation's, closed forms and laws."""

import math
import re
from typing import Any

import pytest
import torch
from golden_data import load_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_kd.losses import MINILM_V1, MINILM_V2, relation_loss

AT, VR = [("q", "k")], [("v", "v")]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
Vectors = dict[str, Tensor]


def vectors(**rows: list[list[float]]) -> Vectors:
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in rows.items()}


# Three tokens, two heads of 2 (teacher) and of 1 (student).
TEACHER = vectors(
    q=[[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 2]],
    k=[[1, 1, 0, 1], [0, 2, 1, 1], [1, 0, 2, 0]],
    v=[[2, 0, 1, 1], [0, 1, 0, 2], [1, 1, 1, 0]],
)
STUDENT = vectors(q=[[1, 0], [0, 1], [1, 1]], k=[[0, 1], [1, 1], [2, 0]], v=[[1, 0], [0, 2], [1, 1]])
ALL = torch.ones(1, 3)


def close(actual: Tensor | float, expected: Any, tolerance: float = 1e-9) -> None:
    actual, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def loop(student: Vectors, teacher: Vectors, mask: Tensor, relations: Any, heads: int, reduction: str) -> float:
    """The definition, sample by sample, head by head, row by row, on the real tokens alone."""

    def relation(x: Tensor, y: Tensor, head: int) -> Tensor:
        d = x.shape[1] // heads
        part = slice(head * d, (head + 1) * d)
        scores = torch.tensor(
            [[sum(a * b for a, b in zip(p, q, strict=True)) for q in y[:, part].tolist()] for p in x[:, part].tolist()],
            dtype=torch.float64,
        )
        exp = (scores / math.sqrt(d)).exp()
        return exp / exp.sum(1, keepdim=True)

    sums, lengths = [], []
    for sample, real in enumerate(mask.bool()):
        if real.any():
            total = 0.0
            for (x, y), head in [(pair, head) for pair in relations for head in range(heads)]:
                p, r = (relation(net[x][sample, real], net[y][sample, real], head) for net in (teacher, student))
                total += float((p * (p / r).log()).sum()) / heads
            sums.append(total)
            lengths.append(int(real.sum()))
    if reduction == "token":
        return sum(sums) / sum(lengths)
    return sum(total / n for total, n in zip(sums, lengths, strict=True)) / len(sums)


def random_case(
    seed: int, batch: int = 3, length: int = 5, heads: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Vectors, Vectors, Tensor]:
    """Student of width 8, teacher of 16, and any mask with a real token in each sample."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        {
            name: 2 * torch.randn(batch, length, width * heads, generator=generator, dtype=torch.float64).to(dtype)
            for name in "qkv"
        }
        for width in (2, 4)
    )
    mask = torch.rand(batch, length, generator=generator) < 0.6
    mask[torch.arange(batch), torch.randint(length, (batch,), generator=generator)] = True
    return student, teacher, mask


# The worked example


@pytest.mark.parametrize(
    ("relations", "heads", "expected"),
    [
        (AT, 2, 0.2669691818),
        (VR, 2, 0.2049003602),
        (MINILM_V1, 2, 0.4718695420),
        ([("q", "q")], 1, 0.0811782947),
        ([("k", "k")], 1, 0.1032831236),
        ([("v", "v")], 1, 0.1814383101),
        (MINILM_V2, 1, 0.3658997284),
        ([("q", "q")], 2, 0.1229818382),
        ([("k", "k")], 2, 0.4475905702),
        (MINILM_V2, 2, 0.7754727685),
    ],
)
def test_worked_example(relations: Any, heads: int, expected: float) -> None:
    close(relation_loss(STUDENT, TEACHER, ALL, relations, heads), expected)


@pytest.mark.parametrize(
    ("relations", "rows"),
    [
        (AT, [[0.3542429869, 0.1480755285, 0.5575792649], [0.0452493111, 0.4874333891, 0.0092346103]]),
        (VR, [[0.2509083207, 0.0452493111, 0.0064076411], [0.0452493111, 0.3240083119, 0.5575792649]]),
    ],
)
def test_rows_of_the_worked_example(relations: Any, rows: list[list[float]]) -> None:
    """A head at a time; of its three rows the loss is the mean."""
    for head, expected in enumerate(rows):
        student = {name: value[..., head : head + 1] for name, value in STUDENT.items()}
        teacher = {name: value[..., 2 * head : 2 * head + 2] for name, value in TEACHER.items()}
        close(3 * relation_loss(student, teacher, ALL, relations, 1), sum(expected))


WRONG = {
    "batchmean": 1.6018150908,
    "mean of all elements": 0.0889897273,
    "KL(student || teacher)": 0.2428172885,
    "the teacher's scale for the student": 0.1912061349,
}


def test_is_none_of_the_usual_mistakes() -> None:
    at = relation_loss(STUDENT, TEACHER, ALL, AT, 2)
    assert all(abs(at - wrong) > 0.02 for wrong in WRONG.values())
    # That these numbers are what such mistakes give:
    close(at * 6, WRONG["batchmean"])
    close(at / 3, WRONG["mean of all elements"])
    close(relation_loss(TEACHER, STUDENT, ALL, AT, 2), WRONG["KL(student || teacher)"])
    rescaled = {**STUDENT, "q": STUDENT["q"] / math.sqrt(2)}
    close(relation_loss(rescaled, TEACHER, ALL, AT, 2), WRONG["the teacher's scale for the student"])


def test_gradient_of_the_scores() -> None:
    """With K the identity the gradient of Q is that of the scores of head 0, (R - P) / (A S), up to the scale."""
    scores = STUDENT["q"][0, :, :1] @ STUDENT["k"][0, :, :1].T
    student = {"q": (math.sqrt(3) * scores)[None].requires_grad_(), "k": torch.eye(3, dtype=torch.float64)[None]}
    teacher = {name: TEACHER[name][..., :2] for name in "qk"}
    relation_loss(student, teacher, ALL, AT, 1).backward()
    expected = [
        [-0.0518469199, 0.0078254427, 0.0440214772],
        [0.0082229873, -0.0404403353, 0.0322173480],
        [-0.0518469199, -0.0260639369, 0.0779108569],
    ]
    assert student["q"].grad is not None
    close(student["q"].grad[0] * math.sqrt(3) / 2, expected)


# Padding


def padded(net: Vectors, value: dict[str, float], left: bool) -> Vectors:
    rows = {name: torch.full((1, 2, x.shape[2]), value[name], dtype=x.dtype) for name, x in net.items()}
    return {name: torch.cat([rows[name], x] if left else [x, rows[name]], 1) for name, x in net.items()}


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("garbage", [None, 1e4, math.inf, math.nan])
@pytest.mark.parametrize(("relations", "expected"), [(AT, 0.2669691818), (VR, 0.2049003602)])
def test_padding_changes_nothing(left: bool, garbage: float | None, relations: Any, expected: float) -> None:
    teacher, student = {"q": 3.0, "k": -2.0, "v": 1.0}, {"q": 1.5, "k": 2.0, "v": 3.0}
    if garbage is not None:
        teacher = student = dict.fromkeys("qkv", garbage)
    inputs = {name: x.requires_grad_() for name, x in padded(STUDENT, student, left).items()}
    mask = torch.tensor([[0, 0, 1, 1, 1] if left else [1, 1, 1, 0, 0]])
    loss = relation_loss(inputs, padded(TEACHER, teacher, left), mask, relations, 2)
    close(loss, expected)
    for name in {name for pair in relations for name in pair}:
        (gradient,) = torch.autograd.grad(loss, inputs[name], retain_graph=True)
        assert (gradient[0, mask[0] == 0] == 0).all() and (gradient[0, mask[0] == 1] != 0).any()


def test_padding_that_is_not_masked_shows() -> None:
    student = padded(STUDENT, {"q": 1.5, "k": 2.0, "v": 0.0}, left=False)
    teacher = padded(TEACHER, {"q": 3.0, "k": -2.0, "v": 0.0}, left=False)

    def mean_kl(rows: int, keys: int) -> float:
        p, r = (
            torch.einsum("iad,jad->aij", *(net[name][0].unflatten(1, (2, -1)) for name in "qk"))[:, :rows, :keys]
            / math.sqrt(net["q"].shape[2] / 2)
            for net in (teacher, student)
        )
        return float((p.softmax(2) * (p.log_softmax(2) - r.log_softmax(2))).sum(2).mean())

    masked = relation_loss(student, teacher, torch.tensor([[1, 1, 1, 0, 0]]), AT, 2)
    close(masked, mean_kl(rows=3, keys=3))
    wrong = {"keys not masked": (mean_kl(3, 5), 0.8982689514), "rows of padding": (mean_kl(5, 3), 0.5857740339)}
    for value, expected in wrong.values():
        close(value, expected)
        assert abs(masked - value) > 0.1


@pytest.mark.parametrize(
    ("reduction", "attention", "values", "total"),
    [
        ("sample", 0.1917690253, 0.1673037331, 0.3590727584),
        ("token", 0.2068090566, 0.1748230585, 0.3816321151),
    ],
)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_batch_of_two_lengths(reduction: Any, attention: float, values: float, total: float, kind: torch.dtype) -> None:
    """The second sample is the first two tokens of the first."""
    student, teacher = ({name: x.repeat(2, 1, 1) for name, x in net.items()} for net in (STUDENT, TEACHER))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).to(kind)
    for relations, expected in ((AT, attention), (VR, values), (MINILM_V1, total)):
        close(relation_loss(student, teacher, mask, relations, 2, reduction), expected)
    second = [{name: x[1:] for name, x in net.items()} for net in (student, teacher)]
    close(relation_loss(*second, mask[1:], AT, 2), 0.1165688687)
    close(relation_loss(*second, mask[1:], VR, 2), 0.1297071061)


@pytest.mark.parametrize("reduction", ["sample", "token"])
def test_samples_of_nothing_but_padding_are_not_counted(reduction: Any) -> None:
    student, teacher = ({name: x.repeat(3, 1, 1) for name, x in net.items()} for net in (STUDENT, TEACHER))
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [1, 1, 0]])
    kept = [{name: x[[0, 2]] for name, x in net.items()} for net in (student, teacher)]
    expected = relation_loss(*kept, mask[[0, 2]], MINILM_V1, 2, reduction)
    inputs = {name: x.float().requires_grad_() for name, x in student.items()}
    loss = relation_loss(inputs, teacher, mask, MINILM_V1, 2, reduction)
    close(loss, expected, 1e-6)
    loss.backward()
    assert all(bool(torch.isfinite(x.grad).all()) and not x.grad[1].any() for x in inputs.values())
    empty = relation_loss(inputs, teacher, torch.zeros(3, 3), MINILM_V1, 2, reduction)
    assert empty == 0 and empty.requires_grad


# Golden


@DTYPES
@pytest.mark.parametrize(
    ("file", "relations", "heads"), [("minilm_v1_qk_vv", MINILM_V1, 2), ("minilm_v2_qq_kk_vv", MINILM_V2, 4)]
)
def test_numbers_of_the_reference(file: str, relations: Any, heads: int, dtype: torch.dtype) -> None:
    golden = load_golden(file, dtype)
    student = {name: golden[f"student_{name}"].requires_grad_() for name in "qkv"}
    teacher = {name: golden[f"teacher_{name}"] for name in "qkv"}
    mask, tolerance = golden["attention_mask"], 1e-6 if dtype == torch.float64 else 1e-5
    for pair in relations:
        loss = relation_loss(student, teacher, mask, [pair], heads)
        close(loss, golden[f"loss_{''.join(pair)}__float64"], tolerance)
    loss = relation_loss(student, teacher, mask, relations, heads)
    close(loss, golden["loss__float64"], tolerance)
    close(
        relation_loss(student, teacher, mask, relations, heads, "token"), golden["loss_token_mean_float64"], tolerance
    )
    loss.backward()
    for name, value in student.items():
        close(value.grad, golden[f"grad_student_{name}"], tolerance)


@DTYPES
def test_left_padding_where_the_reference_is_wrong(dtype: torch.dtype) -> None:
    golden = load_golden("minilm_left_padding", dtype)
    student, teacher = ({name: golden[f"{net}_{name}"] for name in "qkv"} for net in ("student", "teacher"))
    loss = relation_loss(student, teacher, golden["attention_mask"], MINILM_V2, 4)
    close(loss, golden["expected_correct"], 1e-6 if dtype == torch.float64 else 1e-5)
    assert abs(loss - golden["loss_reference_wrong"]) > 0.01


# Closed forms


def test_uniform_student() -> None:
    """Vectors of zeros give uniform rows: ln 3 less the mean entropy of the teacher's rows."""
    student = {"v": torch.zeros(1, 3, 2, dtype=torch.float64)}
    close(relation_loss(student, TEACHER, ALL, VR, 2), 1.0986122887 - 0.9210669338)


def test_equal_networks() -> None:
    student = {name: x.clone().requires_grad_() for name, x in TEACHER.items()}
    loss = relation_loss(student, TEACHER, ALL, MINILM_V1, 2)
    loss.backward()
    close(loss, 0, 1e-7)
    assert all(x.grad.abs().max() < 1e-7 for x in student.values())


def test_invariances() -> None:
    def loss(relations: Any, **changed: Tensor) -> Tensor:
        return relation_loss({**STUDENT, **changed}, TEACHER, ALL, relations, 1)

    turn = torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]], dtype=torch.float64)
    shift = torch.tensor([0.7, -1.3], dtype=torch.float64)
    close(loss(VR, v=STUDENT["v"] @ turn), loss(VR))
    assert abs(loss(VR, v=STUDENT["v"] + shift) - loss(VR)) > 1e-3
    close(loss(AT, k=STUDENT["k"] + shift), loss(AT))
    assert abs(loss(MINILM_V2, k=STUDENT["k"] + shift) - loss(MINILM_V2)) > 1e-3
    swapped = {name: x.flip(2) for name, x in STUDENT.items()}
    assert abs(relation_loss(swapped, TEACHER, ALL, AT, 2) - 0.2669691818) > 1e-3


def test_split_into_more_heads_does_not_mix_tokens() -> None:
    student = {"v": torch.cat([STUDENT["v"], STUDENT["v"]], 2)}
    close(relation_loss(student, TEACHER, ALL, VR, 4), 0.1707896789)
    wrong = [  # attention heads (B, A, S, d) reshaped, not transposed first, to (B, 4, S, d / 2)
        {"v": net["v"].unflatten(2, (2, -1)).transpose(1, 2).reshape(1, 4, 3, -1).transpose(1, 2).flatten(2)}
        for net in (student, TEACHER)
    ]
    close(relation_loss(*wrong, ALL, VR, 4), 0.1294927993)


# Laws


@pytest.mark.parametrize("reduction", ["sample", "token"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_equals_the_definition(reduction: Any, seed: int) -> None:
    student, teacher, mask = random_case(seed)
    relations = [("q", "k"), ("k", "q"), ("v", "q"), ("v", "v")]
    loss = relation_loss(student, teacher, mask, relations, 4, reduction)
    close(loss, loop(student, teacher, mask, relations, 4, reduction))
    assert loss > 0


@pytest.mark.parametrize("reduction", ["sample", "token"])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_gradient_is_that_of_finite_differences(reduction: Any, chunk: int | None) -> None:
    student, teacher, mask = random_case(seed=1)
    mask[2] = False
    names = list("qkv")

    def loss(*x: Tensor) -> Tensor:
        given = dict(zip(names, x, strict=True))
        return 3 * relation_loss(given, teacher, mask, [*MINILM_V1, *MINILM_V2], 4, reduction, chunk=chunk)

    torch.autograd.gradcheck(loss, [student[name].requires_grad_() for name in names])


def test_gradient_of_a_part_and_of_nothing() -> None:
    student, teacher, mask = random_case(seed=2)
    student["q"].requires_grad_()
    teacher["q"].requires_grad_()
    relation_loss(student, teacher, mask, MINILM_V1, 4).backward()
    assert student["q"].grad is not None and teacher["q"].grad is None and student["k"].grad is None
    with torch.no_grad():
        assert not relation_loss(student, teacher, mask, MINILM_V1, 4).requires_grad


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    student, teacher, mask = random_case(seed=3)
    results = []
    for size in (None, chunk):
        inputs = {name: x.clone().requires_grad_() for name, x in student.items()}
        loss = relation_loss(inputs, teacher, mask, MINILM_V2, 4, chunk=size)
        results.append([loss, *torch.autograd.grad(loss, list(inputs.values()))])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize(("chunk", "most"), [(1, 2 * 64**2), (3, 3 * 2 * 64**2)])
def test_no_tensor_is_larger_than_a_chunk(chunk: int, most: int) -> None:
    student, teacher, mask = random_case(seed=4, batch=2, length=64, heads=12)
    student = {name: x.requires_grad_() for name, x in student.items()}
    with Largest() as largest:
        relation_loss(student, teacher, mask, MINILM_V2, 12, chunk=chunk).backward()
    assert largest.elements == max(most, 2 * 64 * 48)


# Precision


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(half: torch.dtype) -> None:
    student, teacher, mask = random_case(seed=5, length=16, dtype=half)
    mask[0] = False
    wide = [{name: x.float() for name, x in net.items()} for net in (student, teacher)]
    expected = relation_loss(*wide, mask, MINILM_V1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inputs = {name: x.requires_grad_() for name, x in student.items()}
        loss = relation_loss(inputs, teacher, mask, MINILM_V1, 4)
        autocast = relation_loss(*wide, mask, MINILM_V1, 4)
    assert loss.dtype == torch.float32 and loss == expected == autocast
    loss.backward()
    assert all(x.grad.dtype == half and torch.isfinite(x.grad).all() for x in inputs.values())


def test_large_vectors_in_half_precision() -> None:
    """64 * 40^2 is beyond float16."""
    large = {name: torch.full((1, 2, 64), 40.0, dtype=torch.float16) for name in "qk"}
    teacher = {**large, "k": torch.cat([large["k"][:, :1], -large["k"][:, 1:]], 1)}
    loss = relation_loss({name: x.requires_grad_() for name, x in large.items()}, teacher, torch.ones(1, 2), AT, 1)
    close(loss, math.log(2), 1e-6)


def test_a_teacher_of_inference_mode_serves() -> None:
    student, teacher, mask = random_case(seed=6)
    expected = relation_loss(student, teacher, mask, MINILM_V1, 4)
    with torch.inference_mode():
        frozen = {name: x + 0 for name, x in teacher.items()}
    loss = relation_loss({name: x.requires_grad_() for name, x in student.items()}, frozen, mask, MINILM_V1, 4)
    loss.backward()
    assert loss == expected


# Bad input


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"heads": 3}, "heads=3 does not divide the student's width 2"),
        ({"relations": []}, "relations=[] must be pairs"),
        ({"relations": [("q", "x")]}, "must be pairs of"),
        ({"relations": [("q",)]}, "must be pairs of"),
        ({"mask": torch.ones(1, 4)}, "of the student has shape (1, 3, 2), but must be (B, S, H) with the mask's"),
        ({"mask": torch.ones(1, 1, 1, 3)}, "(B, S) = (1, 1, 1, 3)"),
        ({"teacher": {name: x[:, :2] for name, x in TEACHER.items()}}, "of the teacher has shape (1, 2, 4)"),
        ({"teacher": {"q": TEACHER["q"]}}, "The teacher gives no 'k', only q."),
    ],
)
def test_bad_input_gives_a_sentence(changed: dict[str, Any], sentence: str) -> None:
    given = {"student": STUDENT, "teacher": TEACHER, "mask": ALL, "relations": AT, "heads": 2, **changed}
    if "heads" in changed:
        given["relations"] = VR
    with pytest.raises(ValueError, match=re.escape(sentence)):
        relation_loss(**given)
