"""Texts that training data should not have: near-duplicates, and what the evaluation asks.

Texts are compared by their words, in lower case and without signs. Results are exact, and a function of the texts in
their order alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

from lit_kd.checks import check_share

Gram = tuple[Hashable, ...]


def near_duplicates(
    texts: Sequence[str], threshold: float = 0.9, size: int = 5, groups: Sequence[Hashable] | None = None
) -> list[int | None]:
    """Of each text the position of an earlier one that it repeats, or None; repeated texts are not compared with.

    Two texts are near-duplicates if their sets of ``size`` consecutive words have a Jaccard similarity of at least
    ``threshold``; texts of fewer words count as one such sequence.

    Args:
        texts: To compare.
        threshold: In (0, 1]; 1: all sequences are the same.
        size: Words of a sequence.
        groups: What must be equal besides, such as system messages; None: nothing.

    Raises:
        ValueError: A threshold out of range.

    Example:
        >>> near_duplicates(["Tom has 3 apples.", "tom has 3 apples", "Tom has 4 apples."])
        [None, 0, None]
    """
    check_share("(0, 1]", threshold=threshold)
    groups = [None] * len(texts) if groups is None else groups
    sets = [{(group, *gram) for gram in grams(text, size)} for group, text in zip(groups, texts, strict=True)]
    frequency = Counter(gram for each in sets for gram in each)
    # Two sets with that similarity share one of their rarest members: no more than |A| - ceil(t |A|) + 1 need a look.
    looked_up: dict[Gram, list[int]] = {}
    found: list[int | None] = []
    for position, own in enumerate(sets):
        rarest = sorted(own, key=lambda gram: (frequency[gram], repr(gram)))
        rarest = rarest[: len(own) - math.ceil(threshold * len(own) - 1e-9) + 1]
        candidates = sorted({other for gram in rarest for other in looked_up.get(gram, ())})
        same = (other for other in candidates if similarity(own, sets[other]) >= threshold)
        found.append(next(same, None))
        if found[-1] is None:
            for gram in rarest:
                looked_up.setdefault(gram, []).append(position)
    return found


def contaminated(texts: Sequence[str], evaluation: Sequence[str], size: int = 13) -> list[int | None]:
    """Of each text the position of a text of the evaluation that shares ``size`` consecutive words with it, or None.

    Texts of fewer words must have the same words.

    Example:
        >>> contaminated(["How many apples has Tom?", "How many pears?"], ["how many apples has tom"])
        [0, None]
    """
    known: dict[Gram, int] = {}
    for position, text in enumerate(evaluation):
        for gram in grams(text, size):
            known.setdefault(gram, position)
    return [min((known[gram] for gram in grams(text, size) if gram in known), default=None) for text in texts]


def similarity(one: set[Gram], other: set[Gram]) -> float:
    """Jaccard: members that both have by members that either has; of empty sets 1."""
    both = len(one & other)
    either = len(one) + len(other) - both
    return both / either if either else 1.0


def grams(text: str, size: int) -> set[Gram]:
    """All sequences of ``size`` words; of fewer words there is one."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + size]) for start in range(max(1, len(words) - size + 1))}
