"""Rouge-L: how much of an answer's wording, in order, is that of its references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_kd.language.engines.sampling import Completion
from lit_kd.language.scores import AnswerMetric


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Rouge-L F of a text, 0 to 1: the best one over its references.

    As the package rouge_score computes it with ``use_stemmer=True``: lower case, all but a-z and 0-9 are blanks, words
    over 3 letters are stemmed (Porter), ``F = 2 P R / (P + R)`` of the longest common subsequence of words.

    Args:
        prediction: the text.
        references: one or more.

    Raises:
        ValueError: no reference.
        ImportError: nltk is missing.

    Example:
        >>> round(rouge_l("The cats sat.", ["A dog lay down.", "the cat was sitting"]), 4)  # the, cat: P 2/3, R 2/4
        0.5714
    """
    if isinstance(references, str) or not references:
        raise ValueError(f"references={references!r} must be a list of one or more texts.")
    from torchmetrics.functional.text import rouge_score

    try:
        found = rouge_score([prediction], [list(references)], accumulate="best", use_stemmer=True, rouge_keys="rougeL")
    except ModuleNotFoundError as error:
        raise ImportError("Rouge-L needs nltk: pip install 'lit-kd[llm]'.") from error
    return float(found["rougeL_fmeasure"])


class Overlap(AnswerMetric):
    """Rouge-L of free answers, times 100.

    ``compute`` gives ``rougeL`` (F, stemmed, the best over a question's references, the mean over questions) with
    ``rougeL_low`` and ``rougeL_high`` (95 %, bootstrap over the questions), ``finished``, ``tokens`` and ``problems``.
    Gold is a reference or a list of them; a ValueError is raised for an empty list.

    Args:
        samples: answers of each question, n.
    """

    columns = ("rougeL",)
    proportions = False

    def score(self, answer: Completion, gold: Any) -> tuple[float]:
        """Rouge-L of one answer."""
        return (100 * rouge_l(answer.text, [gold] if isinstance(gold, str) else gold),)
