"""Exact match and F1 of answers, with the meaning of the official SQuAD 2.0 script (arXiv:1806.03822).

torchmetrics' SQuAD is that of version 1.1: it fails on questions without a gold answer and knows neither their split
nor the best threshold.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from lit_kd.language.squad import SquadExample

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and the words a, an, the; blanks squeezed; in this order.

    Example:
        >>> normalize_answer("The  Cat-nap!")
        'catnap'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    """1 if both are the same after :func:`normalize_answer`, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(gold))


def token_f1(prediction: str, gold: str) -> float:
    """F1 of the two multisets of normalised words; without words on one side, 1 if both have none and else 0.

    Example:
        >>> token_f1("black cat", "a black cat sat")
        0.8
    """
    words, gold_words = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not words or not gold_words:
        return float(words == gold_words)
    # 2PR / (P + R), P = common / predicted words, R = common / gold words
    return 2 * (Counter(words) & Counter(gold_words)).total() / (len(words) + len(gold_words))


def squad_scores(
    predictions: Mapping[str, str], examples: Sequence[SquadExample], strict: bool = True
) -> dict[str, float]:
    """Percentages `exact` and `f1`, and the number of questions `total`.

    The same of questions with an answer as `HasAns_*` and without one as `NoAns_*`, where there are any. A question
    counts by its best gold answer; golds without a word are left out, and without any gold "" is right.

    Args:
        predictions: Text by the id of the question; "" for no answer. Ids that are no example's are ignored.
        examples: The questions that are scored.
        strict: False: a question without a prediction counts as 0; the official script leaves it out of the mean.

    Raises:
        ValueError: No example; a question without a prediction, if `strict`.

    Example:
        >>> squad_scores({"q": "the cat"}, [SquadExample("q", "Who?", "A cat.", ("cat",), (2,))])["exact"]
        100.0
    """
    if not examples:
        raise ValueError("There is no question to score: examples is empty.")
    missing = [example.id for example in examples if example.id not in predictions]
    if missing and strict:
        raise ValueError(
            f"{len(missing)} of {len(examples)} questions have no prediction ({', '.join(missing[:3])}, ...): "
            "predict them, or count them as wrong by strict=False."
        )
    groups = {
        "": examples,
        "HasAns_": [example for example in examples if example.answers],
        "NoAns_": [example for example in examples if not example.answers],
    }
    scores: dict[str, float] = {}
    for prefix, group in groups.items():
        if group:
            scores[f"{prefix}exact"] = 100 * sum(_score(predictions, e, exact_match) for e in group) / len(group)
            scores[f"{prefix}f1"] = 100 * sum(_score(predictions, e, token_f1) for e in group) / len(group)
            scores[f"{prefix}total"] = len(group)
    return scores


def best_thresholds(
    predictions: Mapping[str, str], examples: Sequence[SquadExample], no_answer: Mapping[str, float]
) -> dict[str, float]:
    """The best percentages that any threshold on `no_answer` gives, and the thresholds.

    A question is answered where its `no_answer` does not exceed the threshold. The walk is the official one: from
    "nothing is answered" on, the questions by rising `no_answer` add their score, -1 for a text where there is no
    answer and 0 for none.

    Args:
        predictions: Text by the id of the question. Take the best span of each question: texts on which a threshold
            has been used already would keep a better one from being found.
        examples: The questions that are scored.
        no_answer: By the id of the question, a number that rises with the belief in "no answer": a probability, or
            null odds, whose thresholds are then `null_threshold` of :func:`predict_spans`.

    Returns:
        `best_exact`, `best_f1`, `best_exact_thresh`, `best_f1_thresh`; -inf (the official script says 0, the least
        probability) means that nothing is answered.

    Raises:
        ValueError: No example, or a question without a prediction or number.
    """
    if not examples:
        raise ValueError("There is no question to score: examples is empty.")
    missing = [e.id for e in examples if e.id not in predictions or e.id not in no_answer]
    if missing:
        raise ValueError(f"{len(missing)} questions have no prediction or no_answer ({', '.join(missing[:3])}, ...).")
    found: dict[str, float] = {}
    for name, metric in (("exact", exact_match), ("f1", token_f1)):
        score = best = float(sum(not example.answers for example in examples))
        threshold = -math.inf
        for example in sorted(examples, key=lambda example: no_answer[example.id]):
            if example.answers:
                score += _score(predictions, example, metric)
            elif predictions[example.id]:
                score -= 1
            if score > best:
                best, threshold = score, no_answer[example.id]
        found[f"best_{name}"] = 100 * best / len(examples)
        found[f"best_{name}_thresh"] = threshold
    return found


def _score(predictions: Mapping[str, str], example: SquadExample, metric: Callable[[str, str], float]) -> float:
    if example.id not in predictions:
        return 0.0
    golds = [gold for gold in example.answers if normalize_answer(gold)] or [""]
    return max(metric(predictions[example.id], gold) for gold in golds)
