"""Rouge-L as the package rouge_score gives it, and what is counted in summaries."""

import doctest
import importlib
from typing import Any

import pytest

from lit_kd.language import overlap, summaries
from lit_kd.language.engines import Completion
from lit_kd.language.overlap import Overlap, rouge_l
from lit_kd.language.summaries import SummaryScores, entities, words


def completion(text: str, tokens: int = 1) -> Completion:
    return Completion(text, "stop", None, 1, tokens)


def test_examples() -> None:
    assert doctest.testmod(overlap).failed == doctest.testmod(summaries).failed == 0


# F of rouge_score 0.1.2, RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)
GOLDEN = [
    ("The cats were running quickly, weren't they?", "A cat runs quick; they were not running.", 0.375),
    ("state-of-the-art GPT-2 models: 3.5% better", "State of the art GPT2 model, 3.5 percent better", 0.8),
    ("naïve café Größe 北京 test", "naive cafe test", 0.2222222),
    ("", "something", 0),
    ("one two three four five six", "six five four three two one", 0.1666667),
    ("He was dying and lies untried, flies relational", "He died, lay untied; fly relate", 0.4285714),
    ("under_score and under score", "under score and under_score", 1.0),
    ("Line one.\nLine two.\n\nLine three", "Line two.\nLine one.\nLine three.", 0.6666667),
]


@pytest.mark.parametrize(("prediction", "reference", "f"), GOLDEN)
def test_rouge_l_is_that_of_rouge_score(prediction: str, reference: str, f: float) -> None:
    assert rouge_l(prediction, [reference]) == pytest.approx(f, abs=1e-6)


def test_the_best_reference_counts() -> None:
    references = ["nothing of it", "the cat sat", "a cat"]
    assert rouge_l("the cat sat", references) == 1 == max(rouge_l("the cat sat", [one]) for one in references)


def test_overlap_of_several_answers() -> None:
    metric = Overlap(2)
    metric.update([[completion("the cat", 4), completion("a dog", 6)]], [["the cat", "no"]])
    metric.update([[completion("", 0), completion("blue", 2)]], ["blue"])
    found = metric.compute()
    assert found["rougeL"] == pytest.approx(50) and found["tokens"] == 3 and found["problems"] == 2
    assert found["rougeL_low"] <= 50 <= found["rougeL_high"]


@pytest.mark.parametrize("gold", [[], "text"])
def test_references_are_checked(gold: Any) -> None:
    with pytest.raises(ValueError, match="must be a list of one or more texts"):
        rouge_l("a", gold)


def test_without_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    rouge = importlib.import_module("torchmetrics.functional.text.rouge")
    monkeypatch.setattr(rouge, "_NLTK_AVAILABLE", False)
    with pytest.raises(ImportError, match=r"pip install 'lit-kd\[llm\]'"):
        rouge_l("a", ["a"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", set()),
        ("Nobody came. Everyone slept.", set()),
        ("The New York Times said so.", {"New York Times"}),
        ("Rain fell on Paris, Rome and Paris.", {"Paris", "Rome"}),
        ("Paris is big. We love Paris.", {"Paris"}),
        ("NASA paid 3.5 million in March 2020.", {"NASA", "3.5", "March 2020"}),
        ("“Later,” said Ana.", {"Ana"}),
        ("Yesterday I saw iPhones.", {"iPhones"}),
    ],
)
def test_entities(text: str, found: set[str]) -> None:
    assert entities(text) == found


def test_density_counts_names_once() -> None:
    metric = SummaryScores(1)
    dense, vague = "Ana Diaz met Bob Smith in Rome.", "Two people met and then Ana met Ana."
    assert (len(words(dense)), len(words(vague))) == (7, 8)
    metric.update([[completion(dense, 9)], [completion(vague, 11)]], [[dense], ""])
    found = metric.compute()
    assert found["entity_density"] == pytest.approx((3 / 7 + 1 / 8) / 2)
    assert found["words"] == 7.5 and found["tokens"] == 10
    assert found["rougeL"] == pytest.approx(100)  # of the one that has a reference


def test_no_references_no_rouge() -> None:
    metric = SummaryScores(1)
    metric.update([[completion("")], [completion("Ana.")]], ["", []])
    found = metric.compute()
    assert "rougeL" not in found and found["entity_density"] == 0.0 and found["words"] == 0.5
