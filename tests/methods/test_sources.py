"""Sources of sequences, with writers that are scripts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_kd.language.engines import Sampling
from lit_kd.methods import SCRG, FixedData, OnPolicy, Replay, TeacherMixed
from lit_kd.methods.sources import Moment, TokenRow, Writer, Writing

END = 9
GIVEN = [TokenRow(index, (1, 2), (5, END)) for index in range(4)]


class Script(Writer):
    """Continues a row with the step, its index and the end; the teacher would have 7 at `places`."""

    ends = (END,)
    longest = None

    def __init__(self, places: dict[int, int] | None = None, token: int = 7) -> None:
        self.places, self.token = places or {}, token
        self.calls: list[list[TokenRow]] = []
        self.picked: list[Any] = []

    def write(self, rows: Sequence[TokenRow], writing: Writing) -> list[TokenRow]:
        self.calls.append(list(rows))
        more = [(100 + writing.step, 200 + row.index, END)[: writing.room(row)] for row in rows]
        return [replace(row, completion=row.completion + new) for row, new in zip(rows, more, strict=True)]

    def compare(
        self, rows: Sequence[TokenRow], picks: Sequence[np.ndarray] | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.picked.append(picks)
        width = max(len(row.completion) for row in rows)
        tokens, mask = torch.zeros(len(rows), width).long(), torch.zeros(len(rows), width).bool()
        for i, row in enumerate(rows):
            tokens[i, : len(row.completion)], mask[i, : len(row.completion)] = torch.tensor(row.completion), True
        teacher = tokens.clone()
        for i, row in enumerate(rows):
            if row.index in self.places:
                teacher[i, self.places[row.index]] = self.token
        return torch.full(tokens.shape, 0.5), tokens, teacher, mask


def at(step: int, rank: int = 0, batch: int = 0, steps: int = 100) -> Moment:
    return Moment(step, steps, batch, rank)


def test_fixed_data() -> None:
    assert FixedData().rows(GIVEN, at(0), Script()) is None and not FixedData.writes


def test_on_policy_writes_in_its_share_of_the_steps() -> None:
    source, script = OnPolicy(0.3), Script()
    found = [source.rows(GIVEN, at(step), script) for step in range(400)]
    share = np.mean([rows is not None for rows in found])
    assert 0.23 < share < 0.37
    step = next(step for step, rows in enumerate(found) if rows is not None)
    assert found[step] == [TokenRow(i, (1, 2), (100 + step, 200 + i, END)) for i in range(4)]
    assert source.numbers() == {"written": float(found[-1] is not None)}
    assert all(OnPolicy(1.0).rows(GIVEN, at(step), script) for step in range(50))
    assert not any(OnPolicy(0.0).rows(GIVEN, at(step), script) for step in range(50))


def test_all_ranks_and_batches_of_a_step_take_one_branch() -> None:
    """For 100 steps, in each source (B12)."""
    sources: list[Any] = [OnPolicy(0.5), TeacherMixed(probability=0.5), Replay(initial_phi=0.5, capacity=8)]
    for source in sources:
        branches = []
        for rank in range(2):
            if isinstance(source, Replay):
                source.buffer.clear()
            taken = []
            for step in range(100):
                source.rows(GIVEN, at(step, rank, batch=7 * step + rank), Script())
                taken.append(tuple(source.numbers().values()))
            branches.append(taken)
        assert branches[0] == branches[1] and len(set(branches[0])) > 1
    other = OnPolicy(0.5, Sampling(seed=1))
    steps = [at(step) for step in range(100)]
    assert [other.uniform(moment) for moment in steps] != [sources[0].uniform(moment) for moment in steps]


def test_threshold_follows_the_validations() -> None:
    for update, expected in (("on_fire", [0.0, 0.1, 0.1, 0.2]), ("always", [0.0, 0.0, 0.0, 0.1])):
        source = Replay(update_prev=update)  # type: ignore[arg-type]
        source.validated(2.0)  # before training
        phis = []
        for loss in (2.05, 2.12, 2.12, 2.30):
            source.validated(loss)
            phis.append(source.phi)
        assert phis == expected
    for _ in range(20):
        source.validated(source.previous + 1)  # type: ignore[operator]
    assert source.phi == 1.0


def test_schedules() -> None:
    for schedule, expected in (("decreasing", 0.6), ("constant", 0.4), ("increasing", 0.2)):
        assert Replay(schedule, initial_phi=0.8).rho(at(25)) == pytest.approx(expected)  # type: ignore[arg-type]


def test_replay_fills_its_buffer_then_takes_from_it() -> None:
    source, script = Replay(initial_phi=1.0, capacity=10, schedule="increasing"), Script()
    for step in range(3):  # r < phi, and the buffer is not full
        rows = source.rows(GIVEN, at(step, steps=10**9), script)
        assert rows is not None and all(row.completion[0] == 100 + step for row in rows)  # what is new is trained on
        assert source.numbers() == {"phi": 1.0, "written": 1.0, "replayed": 0.0}
    kept = list(source.buffer)
    assert len(kept) == 10 and kept[-1].completion[0] == 102 and kept[0] == TokenRow(2, (1, 2), (100, 202, END))
    drawn = [source.rows(GIVEN, at(step, steps=10**9), script) for step in range(3, 23)]
    assert len(script.calls) == 3 and list(source.buffer) == kept
    for rows in drawn:
        assert rows is not None and len(set(rows)) == 4 and set(rows) <= set(kept)
    assert len({row for rows in drawn for row in rows or []}) == 10
    assert source.rows(GIVEN, at(3, steps=10**9), script) == drawn[0] != source.rows(GIVEN, at(3, 1), script)
    source.phi = 0.0
    assert source.rows(GIVEN, at(30), script) is None


def test_state_of_the_replay() -> None:
    source = Replay(initial_phi=0.7, capacity=10)
    source.validated(1.5)
    for step in range(20):
        source.rows(GIVEN, at(step), Script())
    twin = SCRG(Replay(capacity=10))
    twin.load_state_dict(SCRG(source).state_dict())
    assert isinstance(twin.source, Replay)
    assert (twin.source.phi, twin.source.previous) == (0.7, 1.5) and twin.source.buffer == source.buffer
    empty = Replay()
    empty.load_state_dict(Replay().state_dict())
    assert not empty.buffer and empty.previous is None
    smaller = Replay(capacity=3)
    smaller.load_state_dict(source.state_dict())
    assert list(smaller.buffer) == list(source.buffer)[-3:]


def test_correction_goes_on_from_the_corrected_prefix() -> None:
    source, script = SCRG(Replay(initial_phi=1.0)), Script({0: 1, 2: 0})
    rows = source.rows(GIVEN, at(3), script)
    assert rows is not None
    assert rows[0].completion == (103, 7, 103, 200, END) and rows[2].completion == (7, 103, 202, END)
    assert rows[1].completion == (103, 201, END)  # no error
    assert [row.completion for row in script.calls[1]] == [(103, 7), (7,)]
    assert list(source.source.buffer) == rows  # type: ignore[attr-defined]
    numbers = source.numbers()
    assert numbers["corrected"] == 0.5 and numbers["error_place"] == pytest.approx((1 / 3 + 0) / 2)
    assert numbers["error_difference"] == 0.5 and numbers["phi"] == 1.0
    assert numbers["length_before"] == 3 and numbers["length_after"] == pytest.approx((5 + 3 + 4 + 3) / 4)


def test_no_error_no_second_writing() -> None:
    script = Script()
    rows = SCRG(OnPolicy()).rows(GIVEN, at(0), script)
    assert len(script.calls) == 1 and rows == Script().write([replace(r, completion=()) for r in GIVEN], Writing(Sampling(), 512, 0))  # fmt: skip  # noqa: E501


def test_end_chosen_by_the_teacher_ends_the_row() -> None:
    script = Script({1: 1}, token=END)
    rows = SCRG(OnPolicy()).rows(GIVEN, at(0), script)
    assert rows is not None and rows[1].completion == (100, END) and len(script.calls) == 1


def test_error_at_the_last_place_needs_no_writing() -> None:
    script = Script({1: 2})
    rows = SCRG(OnPolicy(max_length=5)).rows(GIVEN, at(0), script)
    assert rows is not None and rows[1].completion == (100, 201, 7) and len(script.calls) == 1


def test_rounds_and_the_teachers_own_draws() -> None:
    script = Script({0: 0})
    SCRG(OnPolicy(), rounds=3).rows(GIVEN, at(0), script)
    assert len(script.picked) == 3 and all(len(picks) == 4 for picks in script.picked)
    firsts = {float(picks[i][0]) for picks in script.picked for i in range(4)}
    assert len(firsts) == 12 and all(0 <= u < 1 for u in firsts)
    again = Script({0: 0})
    SCRG(OnPolicy(), rounds=1).rows([GIVEN[2]], at(0), again)  # by index and round, not by place in the batch
    assert np.array_equal(again.picked[0][0], script.picked[0][2])
    greedy = Script()
    SCRG(OnPolicy(), teacher_pick="argmax").rows(GIVEN, at(0), greedy)
    assert greedy.picked == [None]


def test_prompts_without_room() -> None:
    with pytest.raises(
        ValueError, match="prompt of index 0 has 2 tokens, which leaves no room to write in max_length=2"
    ):
        OnPolicy(max_length=2).rows(GIVEN, at(0), Script())
    short = Script()
    short.longest = 3  # type: ignore[assignment]
    rows = OnPolicy().rows(GIVEN, at(0), short)
    assert rows is not None and all(len(row.completion) == 1 for row in rows)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Replay(capacity=3).rows(GIVEN, at(0), Script()), "capacity=3 is less than the batch of 4 sequences"),
        (lambda: SCRG(FixedData()), "source=FixedData gives it nothing to correct"),
        (lambda: SCRG(SCRG(OnPolicy())), "source=SCRG gives it nothing to correct"),
    ],
)
def test_bad_input_says_so(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
