"""Summaries: how many entities they name in how many words, and Rouge-L beside."""

from __future__ import annotations

import math
import re
from typing import Any

from lit_kd.language.engines.sampling import Completion
from lit_kd.language.overlap import rouge_l
from lit_kd.language.scores import AnswerMetric

_WORD = re.compile(r"[^\W_]+(?:[-'’.,][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])[\"”’)\]]*\s+|\n+")
_NO_NAMES = re.compile(  # begins a sentence, or is "I"
    r"(?i)a|after|although|an|and|as|at|because|before|but|by|during|for|from|he|her|his|i|if|in|it|its|my|no|of|on|or|"
    r"our|she|since|so|some|that|the|their|there|these|they|this|those|to|we|what|when|where|while|who|with|you|your"
)


def words(text: str) -> list[str]:
    """The words and numbers of a text.

    Example:
        >>> words("Ms O'Neill paid $1,200 in Saint-Denis.")
        ['Ms', "O'Neill", 'paid', '1,200', 'in', 'Saint-Denis']
    """
    return _WORD.findall(text)


def entities(text: str) -> set[str]:
    """The distinct names and numbers in a text: an approximation that needs no model.

    A name is a run of words with capital letters and only blanks between them; a number is a word with a digit, and a
    part of the name that it stands in. A single word that begins a sentence counts only if it has a capital or a digit
    behind its first letter, or is in a name elsewhere. So names that are written without capitals are missed, and words
    of a headline are taken for names: compare texts of one kind with one another, not with counts of a parser.

    Example:
        >>> sorted(entities("The mayor of New York met Ana Diaz in 2019. Diaz left. Nobody spoke."))
        ['2019', 'Ana Diaz', 'Diaz', 'New York']
    """
    names: set[str] = set()
    openers: set[str] = set()
    for sentence in _SENTENCE_END.split(text):
        runs: list[tuple[bool, list[str]]] = []  # whether it begins the sentence, and its words
        end = None  # of the word before, if it is in a run
        for number, match in enumerate(_WORD.finditer(sentence)):
            word = match.group()
            if _NO_NAMES.fullmatch(word) or not _marked(word):
                end = None
                continue
            if end is not None and not sentence[end : match.start()].strip():
                runs[-1][1].append(word)
            else:
                runs.append((number == 0, [word]))
            end = match.end()
        for begins, run in runs:
            (openers if begins and len(run) == 1 and not _marked(run[0][1:]) else names).add(" ".join(run))
    parts = {part for name in names for part in name.split()}
    return names | (openers & parts)


def _marked(word: str) -> bool:
    return any(letter.isupper() or letter.isdigit() for letter in word)


class SummaryScores(AnswerMetric):
    """What can be counted in summaries. Which is the better one, a judge has to say: :mod:`lit_kd.language.judge`.

    ``compute`` gives ``entity_density`` (distinct :func:`entities` by :func:`words`, the mean over summaries) with
    ``entity_density_low`` and ``entity_density_high`` (95 %, bootstrap), ``words``, and ``rougeL`` times 100 as a
    secondary number: against noisy human references it punishes better summaries. It is left out where no question has
    a reference. ``finished``, ``tokens`` and ``problems`` as ever. An empty summary has density 0.

    Gold is a reference, a list of them, or an empty text or list where there is none.

    Args:
        samples: summaries of each text, n.
    """

    columns = ("entity_density", "words", "rougeL")
    proportions = False

    def score(self, answer: Completion, gold: Any) -> tuple[float, float, float]:
        """Density, length and Rouge-L of one summary."""
        length = len(words(answer.text))
        density = len(entities(answer.text)) / length if length else 0.0
        references = [one for one in ([gold] if isinstance(gold, str) else gold) if one]
        return density, length, 100 * rouge_l(answer.text, references) if references else math.nan

    def compute(self) -> dict[str, float]:
        """The numbers by name."""
        numbers = super().compute()
        if math.isnan(numbers["rougeL"]):
            del numbers["rougeL"]
        return numbers
