"""Questions with answers that are spans of a text: SQuAD 1.1 (arXiv:1606.05250) and 2.0 (arXiv:1806.03822)."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from lit_kd.checks import check_choice, check_whole
from lit_kd.language.tokens import CHUNK, TokenRows, flat_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class SquadExample:
    """A question.

    Attributes:
        id: Unique in its file.
        question: As in the file, left blanks stripped.
        context: The text, as in the file.
        answers: All gold answers, text; empty: the text has no answer.
        answer_starts: Of each answer, its first character in the context.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...] = ()
    answer_starts: tuple[int, ...] = ()


@dataclass(frozen=True)
class SquadFeature:
    """A window of a question's context, as the network reads it.

    Attributes:
        example: Position of the question in its list of examples.
        offsets: Of each token, first and last + 1 character in the context; None for tokens outside of it.
        cls_index: Position of the token that stands for "no answer".
    """

    example: int
    offsets: Offsets
    cls_index: int


class SquadWindows(NamedTuple):
    """All windows of a list of questions, in their order.

    Attributes:
        rows: Token ids of each window.
        features: Where its tokens come from. Tokenizers that pad on the left have theirs padded to max_length here, by
            None, and the rows must be padded to it, too.
        positions: First and last token of the first gold answer, int64 (N, 2); both the window's `cls_index` where it
            does not hold the whole answer or there is none.
    """

    rows: TokenRows
    features: list[SquadFeature]
    positions: Tensor


def read_squad(path: str | Path, version: str) -> list[SquadExample]:
    """Read an official JSON file of version 1.1 or 2.0; what tells them apart is the mark `is_impossible`.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is no such file, has no question, or is one of the other version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: give an official JSON file of SQuAD.")
    try:
        data = json.loads(Path(path).read_bytes())["data"]
        pairs = [(p["context"], qa) for article in data for p in article["paragraphs"] for qa in p["qas"]]
        is_2 = any("is_impossible" in qa for _, qa in pairs)
        examples = [
            make_example(qa["id"], qa["question"], context, [(a["text"], a["answer_start"]) for a in qa["answers"]])
            for context, qa in pairs
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no JSON file of SQuAD ({type(error).__name__}: {error}).") from error
    if not examples:
        raise ValueError(f"{path} has no question.")
    if is_2 != (version == "2.0"):
        raise ValueError(
            f"{path} is a file of SQuAD {'2.0' if is_2 else '1.1'} but version={version!r}: give the file of that "
            "version, or change version."
        )
    return examples


def squad_examples(rows: Iterable[Mapping[str, Any]]) -> list[SquadExample]:
    """Questions of one split of `datasets`' squad or squad_v2."""
    return [
        make_example(
            row["id"],
            row["question"],
            row["context"],
            list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)),
        )
        for row in rows
    ]


def make_example(name: str, question: str, context: str, answers: Sequence[tuple[str, int]]) -> SquadExample:
    """A question, without the blanks before it.

    Some questions start with so many that a byte-level tokenizer fills the window with them (transformers#12880).
    """
    texts, starts = tuple(text for text, _ in answers), tuple(start for _, start in answers)
    return SquadExample(name, question.lstrip(), context, texts, starts)


def make_features(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[SquadExample],
    max_length: int = 384,
    stride: int = 128,
    stride_mode: Literal["overlap", "step"] = "overlap",
    max_question_length: int = 64,
) -> SquadWindows:
    """Cut each question's context into windows that fit beside the question.

    The network reads (question, context), or (context, question) if the tokenizer pads on the left; only the context is
    divided.

    Args:
        tokenizer: A fast one.
        examples: The questions.
        max_length: Tokens of a window with question and special tokens.
        stride: Tokens shared by neighbouring windows (`overlap`, as in transformers), or between their starts (`step`,
            as in BERT's script).
        stride_mode: Which of both.
        max_question_length: Tokens after which a question is cut.

    Raises:
        ValueError: see `check_stride` and `check_offsets`.
    """
    check_stride(tokenizer, max_length, stride, stride_mode, max_question_length)
    check_offsets(tokenizer, [example.context for example in examples[:20]])
    left = tokenizer.padding_side == "left"
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    pool: dict[tuple[int, int], tuple[int, int]] = {}  # equal offsets are one object: else SQuAD's take gigabytes
    windows: list[tuple[array[int], bytes, SquadFeature]] = []  # as lists, ids would take nine times the memory
    for start in range(0, len(examples), CHUNK):
        chunk = examples[start : start + CHUNK]
        questions, lengths = cut_questions(tokenizer, [example.question for example in chunk], max_question_length)
        overlaps = [stride if stride_mode == "overlap" else room - length - stride for length in lengths]
        found: list[tuple[array[int], bytes, SquadFeature]] = []
        for overlap in set(overlaps):
            members = [i for i, own in enumerate(overlaps) if own == overlap]
            pair = [questions[i] for i in members], [chunk[i].context for i in members]
            encoded = tokenizer(
                *(pair[::-1] if left else pair),
                truncation="only_first" if left else "only_second",
                max_length=max_length,
                stride=overlap,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_attention_mask=False,
            )
            for window, member in enumerate(encoded["overflow_to_sample_mapping"]):
                ids = encoded["input_ids"][window]
                pads = max_length - len(ids) if left else 0
                offsets = [
                    pool.setdefault(span, span) if part == (0 if left else 1) else None
                    # sequence_ids, as token types are all 0 in RoBERTa (transformers#2788)
                    for span, part in zip(encoded["offset_mapping"][window], encoded.sequence_ids(window), strict=True)
                ]
                feature = SquadFeature(
                    start + members[member], (None,) * pads + tuple(offsets), pads + cls_position(tokenizer, ids)
                )
                types = encoded["token_type_ids"][window] if "token_type_ids" in encoded else ()
                found.append((array("i", ids), bytes(types), feature))
        windows += sorted(found, key=lambda window: window[2].example)  # stable: windows keep their order
    features = [feature for _, _, feature in windows]
    segments = [types for _, types, _ in windows] if "token_type_ids" in tokenizer.model_input_names else None
    positions = [answer_positions(examples[feature.example], feature) for feature in features]
    rows = flat_rows([ids for ids, _, _ in windows], segments)
    return SquadWindows(rows, features, torch.tensor(positions, dtype=torch.int64).view(-1, 2))


def check_stride(
    tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int, stride_mode: str, max_question_length: int
) -> None:
    """See that windows of any question move on and leave no gap.

    Raises:
        ValueError: the stride is too large for the room that the longest question leaves, or out of range.
    """
    check_choice(("overlap", "step"), stride_mode=stride_mode)
    check_whole(int(stride_mode == "step"), stride=stride)
    check_whole(max_question_length=max_question_length)
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    room = max_length - specials - max_question_length
    if stride > room - (stride_mode == "overlap"):  # tokenizers panic at an overlap that is not smaller than the room
        raise ValueError(
            f"stride={stride} is too large for the {room} tokens of context that max_length={max_length} leaves beside "
            f"max_question_length={max_question_length} and {specials} special tokens: lower stride or "
            "max_question_length, or raise max_length."
        )


def check_offsets(tokenizer: PreTrainedTokenizerBase, contexts: Iterable[str]) -> None:
    """See that a token's offsets begin at its first character; RobBERT's began one late (EuroEval PR#2173).

    Raises:
        ValueError: they do not, so that answers would lose their first letter.
    """
    for context in contexts:
        encoded = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            text = str(tokenizer.decode([token])).strip().removeprefix("##").casefold()
            if text != context[start:end].strip().casefold() and text == context[max(0, start - 1) : end].casefold():
                raise ValueError(
                    f"The tokenizer says that {text!r} stands at characters {start} to {end}, where the text has "
                    f"{context[start:end]!r}: its offsets begin late and answers would lose letters; use another one."
                )


def cut_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_tokens: int
) -> tuple[list[str], list[int]]:
    """The questions, or the beginnings of them that have at most `max_tokens` tokens, and their numbers of tokens."""
    cut = list(questions)
    while True:
        encoded = tokenizer(cut, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        if max(lengths) <= max_tokens:
            return cut, lengths
        for i, offsets in enumerate(encoded["offset_mapping"]):
            if lengths[i] > max_tokens:  # shorter in any case: several tokens may share the last character
                cut[i] = cut[i][: min(offsets[max_tokens - 1][1], len(cut[i]) - 1)]


def cls_position(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """Where "no answer" points to: the cls token wherever it stands, else the bos token, else the first."""
    return next((ids.index(token) for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token in ids), 0)


def answer_positions(example: SquadExample, feature: SquadFeature) -> tuple[int, int]:
    """First and last token of the first gold answer, or twice `cls_index` if the window does not hold all of it."""
    nowhere = (feature.cls_index, feature.cls_index)
    if not example.answers:
        return nowhere
    text = example.answers[0]
    first = example.answer_starts[0] + len(text) - len(text.lstrip())
    last = first + len(text.strip())
    spans = [(i, *span) for i, span in enumerate(feature.offsets) if span is not None]
    if first == last or not spans or spans[0][1] > first or spans[-1][2] < last:
        return nowhere
    start = max(i for i, begin, _ in spans if begin <= first)
    end = min(i for i, _, stop in spans if stop >= last)
    return min(start, end), max(start, end)  # the tokens of one character, such as an emoji's bytes, share its offsets
