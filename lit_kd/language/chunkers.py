"""Spans of a text, such as its phrases, and which tokens are in them (MGSR, Liu et al., arXiv:2407.10068).

Published: spans are the noun, verb and prepositional phrases that an off-the-shelf chunker finds; cited is NLTK's.
The grammar is not published: the one here, and the chunkers that need no data, are our choice.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lit_kd.checks import check_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # first character, last + 1

_WORD = re.compile(r"\w+(?:['’\-]\w+)*|[^\w\s]")
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
FUNCTION_WORDS = (
    "a an the this that these those my your his her its our their some any each every no all both "
    "of in on at by for with from to into onto over under between through during before after about against among "
    "upon within without toward towards than as like per via "
    "and or but nor so yet if because while when where which who whom whose what how why whether although though since "
    "until unless is are was were be been being am do does did has have had will would shall should can could may "
    "might must not"
)
GRAMMAR = r"""
    NP: {<PDT>?<DT|PRP\$>?<CD|JJ.*|POS>*<NN.*|PRP|CD>+}
    PP: {<IN|TO>+<NP>}
    VP: {<MD>?<RB.*>*<VB.*>+<RB.*|RP|TO|VB.*>*}
"""


class Chunker(ABC):
    """Finds the spans of a text."""

    @abstractmethod
    def spans(self, text: str) -> list[Span]:
        """Its spans as characters [first, last + 1), in order and without overlap."""


class RegexChunker(Chunker):
    """A span begins with function words and ends at the next ones, or at punctuation. Needs no data.

    Args:
        function_words: what opens a span, in lower case, parted by blanks; English ones by default.

    Example:
        >>> text = "The old dog sleeps in the sun, and dreams."
        >>> [text[start:end] for start, end in RegexChunker().spans(text)]
        ['The old dog sleeps', 'in the sun', 'and dreams']
    """

    def __init__(self, function_words: str = FUNCTION_WORDS) -> None:
        self.function_words = frozenset(function_words.split())

    def spans(self, text: str) -> list[Span]:
        """Its spans, some of one word."""
        found: list[Span] = []
        inside, content = False, False  # a span is open; it has a word that is none of the function words
        for word in _WORD.finditer(text):
            if not re.match(r"\w", word[0]):
                inside = False
                continue
            function = word[0].lower() in self.function_words
            if inside and not (function and content):
                found[-1] = (found[-1][0], word.end())
            else:
                found.append(word.span())
                content = False
            inside, content = True, content or not function
        return found


class NgramChunker(Chunker):
    """Each n words in a row, parted at white space, are a span; the last one may be shorter.

    Args:
        n: words of a span, at least 1.

    Raises:
        ValueError: n is below 1.

    Example:
        >>> NgramChunker(2).spans("one two three")
        [(0, 7), (8, 13)]
    """

    def __init__(self, n: int = 3) -> None:
        check_whole(n=n)
        self.n = n

    def spans(self, text: str) -> list[Span]:
        """Its spans."""
        words = [word.span() for word in re.finditer(r"\S+", text)]
        groups = (words[first : first + self.n] for first in range(0, len(words), self.n))
        return [(group[0][0], group[-1][1]) for group in groups]


class NltkChunker(Chunker):
    """Phrases of English by NLTK: its part-of-speech tagger, and a grammar over the tags.

    Args:
        grammar: of ``nltk.RegexpParser``; a phrase inside another one is not a span of its own.

    Raises:
        ImportError: nltk is missing.
        ValueError: the tagger's data are missing, or the grammar can't be read.
    """

    def __init__(self, grammar: str = GRAMMAR) -> None:
        try:
            import nltk
        except ImportError as error:
            raise ImportError("NltkChunker needs nltk: pip install 'lit-kd[llm]'.") from error
        self.parser = _parser(grammar)
        try:
            nltk.data.find("taggers/averaged_perceptron_tagger_eng/")
        except LookupError as error:
            raise ValueError(
                "NltkChunker finds no tagger: run python -m nltk.downloader averaged_perceptron_tagger_eng, "
                "or take RegexChunker, which needs no data."
            ) from error

    def spans(self, text: str) -> list[Span]:
        """Its phrases."""
        from nltk import pos_tag

        words = list(_WORD.finditer(text))
        tags = [tag for _, tag in pos_tag([word[0] for word in words])]
        return [(words[first].start(), words[last - 1].end()) for first, last in phrases(self.parser, tags)]


class SpacyChunker(Chunker):
    """Phrases by a spaCy pipeline: noun chunks, with the preposition before them, and groups of verbs.

    Args:
        model: name or folder of a pipeline with tagger and parser.

    Raises:
        ImportError: spaCy is missing.
        ValueError: the pipeline is missing, or has no parser.
    """

    def __init__(self, model: str = "en_core_web_sm") -> None:
        try:
            import spacy
        except ImportError as error:
            raise ImportError("SpacyChunker needs spaCy: pip install 'lit-kd[spacy]'.") from error
        try:
            self.pipeline: Any = spacy.load(model, exclude=["ner", "lemmatizer"])
        except OSError as error:
            raise ValueError(
                f"model={model!r} is no spaCy pipeline on this machine: run python -m spacy download {model}, "
                "or take RegexChunker, which needs no data."
            ) from error
        if "parser" not in self.pipeline.pipe_names:
            raise ValueError(f"model={model!r} has no parser, which finds noun chunks: take en_core_web_sm, say.")

    def spans(self, text: str) -> list[Span]:
        """Its phrases."""
        return spacy_phrases(self.pipeline(text))


def phrases(parser: Any, tags: Sequence[str]) -> list[Span]:
    """The outermost phrases, as words [first, last + 1), that a parser of NLTK finds in Penn Treebank tags."""
    found: list[Span] = []
    place = 0
    for part in parser.parse([(str(i), tag) for i, tag in enumerate(tags)]) if tags else []:
        size = len(part.leaves()) if hasattr(part, "leaves") else 1
        if hasattr(part, "leaves"):
            found.append((place, place + size))
        place += size
    return found


def spacy_phrases(document: Any) -> list[Span]:
    """Noun chunks of a parsed document, with a preposition before them, and runs of verbs between these."""
    taken = {}
    for chunk in document.noun_chunks:
        first = chunk.start - (chunk.start > 0 and document[chunk.start - 1].pos_ == "ADP")
        taken.update(dict.fromkeys(range(first, chunk.end), first))
    group = -1
    for token in document:
        if token.i in taken or token.pos_ not in ("VERB", "AUX"):
            group = -1
        else:
            group = token.i if group < 0 else group
            taken[token.i] = group
    found: dict[int, Span] = {}
    for i, first in sorted(taken.items()):
        start = found[first][0] if first in found else document[i].idx
        found[first] = (start, document[i].idx + len(document[i].text))
    return sorted(found.values())


def plain_text(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """The text of ids without special tokens, which :func:`token_offsets` is about."""
    decode: Any = tokenizer.decode
    return decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def token_offsets(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[Span]:
    """The characters of :func:`plain_text` that each token stands for, found by decoding token after token.

    To decode and encode again would not do: it need not give the same tokens. Tokens that can only be decoded together,
    such as the bytes of one emoji, all have the characters of all of them; special tokens have none, (k, k).
    """
    special = set(tokenizer.all_special_ids)
    offsets: list[Span] = []
    plain: list[int] = []  # ids without special ones; those before `done` are decoded, from `context` on
    waiting: list[int] = []  # positions in ids of plain[done:]
    context = done = place = 0
    last = max((i for i, token in enumerate(ids) if token not in special), default=-1)
    for i, token in enumerate(ids):
        offsets.append((place, place))
        if token in special:
            continue
        plain.append(token)
        waiting.append(i)
        known, text = plain_text(tokenizer, plain[context:done]), plain_text(tokenizer, plain[context:])
        if text.endswith(_UNFINISHED) and i < last:
            continue  # bytes of a character whose others follow
        end = place + len(text) - len(known)
        for position in waiting:
            offsets[position] = (place, end)
        waiting, context, done, place = [], done, len(plain), end
    return offsets


def span_pairs(chunker: Chunker, tokenizer: PreTrainedTokenizerBase, completion_ids: Sequence[int]) -> list[int]:
    """The k for which tokens k and k + 1 of a completion are in one span.

    A token is in the span that has its first character that is no blank; special tokens and blanks are in none.

    Example:
        ``span_pairs(RegexChunker(), tokenizer, [the, dog, sleeps, in, the, sun])`` is ``[0, 1, 3, 4]``.
    """
    text = plain_text(tokenizer, completion_ids)
    spans = chunker.spans(text)
    starts = [start for start, _ in spans]
    members: list[int] = []  # the span of each token, -1: none
    for start, end in token_offsets(tokenizer, completion_ids):
        first = next((i for i in range(start, end) if not text[i].isspace()), None)
        span = -1 if first is None else bisect_right(starts, first) - 1
        members.append(span if span >= 0 and first is not None and first < spans[span][1] else -1)
    return [k for k, (here, there) in enumerate(zip(members, members[1:], strict=False)) if here == there >= 0]


def _parser(grammar: str) -> Any:
    from nltk import RegexpParser

    try:
        return RegexpParser(grammar)
    except ValueError as error:
        raise ValueError(f"grammar={grammar!r} can not be read by nltk.RegexpParser: {error}.") from error
