"""The metric: cases of the specification, an independent loop, torchmetrics, and real questions."""

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import DATA
from torchmetrics.text import SQuAD

from lit_kd.language.squad import SquadExample
from lit_kd.language.squad_scores import best_thresholds, exact_match, normalize_answer, squad_scores, token_f1

CASES = [  # prediction, golds, exact match, F1
    ("The Cat!", ["cat"], 1, 1),
    ("black cat", ["a black cat sat"], 0, 0.8),
    ("", [], 1, 1),
    ("cat", [], 0, 0),
    ("", ["cat"], 0, 0),
    ("the", [], 1, 1),
    ("cat cat", ["cat"], 0, 0.666667),
    ("in 1976", ["1976", "the year 1976"], 0, 0.666667),
]


def question(number: int, golds: list[str]) -> SquadExample:
    return SquadExample(f"q{number}", "?", " ".join(golds), tuple(golds), (0,) * len(golds))


EXAMPLES = [question(number, golds) for number, (_, golds, _, _) in enumerate(CASES)]
PREDICTIONS = {f"q{number}": prediction for number, (prediction, _, _, _) in enumerate(CASES)}


@pytest.mark.parametrize(("prediction", "golds", "exact", "f1"), CASES)
def test_a_question(prediction: str, golds: list[str], exact: float, f1: float) -> None:
    scores = squad_scores({"q0": prediction}, [question(0, golds)])
    kind = "HasAns_" if golds else "NoAns_"
    assert scores["exact"] == scores[f"{kind}exact"] == 100 * exact
    assert scores["f1"] == scores[f"{kind}f1"] == pytest.approx(100 * f1, abs=1e-4)


def test_aggregate() -> None:
    assert squad_scores(PREDICTIONS, EXAMPLES) == pytest.approx(
        {
            "exact": 37.5,
            "f1": 64.166667,
            "total": 8,
            "HasAns_exact": 20.0,
            "HasAns_f1": 62.666667,
            "HasAns_total": 5,
            "NoAns_exact": 66.666667,
            "NoAns_f1": 66.666667,
            "NoAns_total": 3,
        },
        abs=1e-5,
    )


def test_normalisation_follows_the_official_order() -> None:
    assert normalize_answer("A.n apple\t\n THE-end of an Ant’s day") == "apple theend of ant’s day"
    assert normalize_answer("the “a” theatre") == "“ ” theatre"  # not ASCII: stays, and the article in it goes


def test_a_gold_without_words_is_left_out() -> None:
    assert squad_scores({"q0": ""}, [question(0, ["the", "cat"])])["f1"] == 0
    assert squad_scores({"q0": ""}, [question(0, ["the"])])["HasAns_f1"] == 100


def test_missing_predictions() -> None:
    some = {key: value for key, value in PREDICTIONS.items() if key not in ("q0", "q2")}
    with pytest.raises(ValueError, match=r"2 of 8 questions have no prediction \(q0, q2, ...\).*strict=False"):
        squad_scores(some, EXAMPLES)
    scores = squad_scores({**some, "stranger": "x"}, EXAMPLES, strict=False)
    assert (scores["exact"], scores["total"]) == (12.5, 8)
    with pytest.raises(ValueError, match="no question to score"):
        squad_scores({}, [])


# The threshold

WALK = {"a": ("cat", ["cat"], 0.1), "d": ("", [], 0.2), "b": ("dog", ["cat"], 0.6), "c": ("x", [], 0.7)}
WALK_EXAMPLES = [SquadExample(key, "?", "", tuple(golds)) for key, (_, golds, _) in WALK.items()]
WALK_TEXTS = {key: text for key, (text, _, _) in WALK.items()}
WALK_ODDS = {key: odds for key, (_, _, odds) in WALK.items()}


def test_threshold_case() -> None:
    found = best_thresholds(WALK_TEXTS, WALK_EXAMPLES, WALK_ODDS)
    assert found == {"best_exact": 75, "best_exact_thresh": 0.1, "best_f1": 75, "best_f1_thresh": 0.1}


def test_nothing_answered_is_a_threshold() -> None:
    found = best_thresholds({"b": "dog", "c": "x"}, WALK_EXAMPLES[2:], {"b": 0.6, "c": 0.7})
    assert (found["best_f1"], found["best_f1_thresh"]) == (50, float("-inf"))


def test_bad_walks() -> None:
    with pytest.raises(ValueError, match=r"1 questions have no prediction or no_answer \(c"):
        best_thresholds(WALK_TEXTS, WALK_EXAMPLES, dict.fromkeys("abd", 0.5))
    with pytest.raises(ValueError, match="no question to score"):
        best_thresholds({}, [], {})


words = st.lists(st.sampled_from(["cat", "The", "a", "dog!", "sat", "1976", "-"]), max_size=5).map(" ".join)


def slow_f1(prediction: str, gold: str) -> float:
    """Common words by crossing them off, precision and recall apart."""

    def split(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~""")
        return [word for word in re.split(r"\s+", text) if word not in ("", "a", "an", "the")]

    ours, theirs = split(prediction), split(gold)
    if not ours or not theirs:
        return float(not ours and not theirs)
    left, common = list(theirs), 0
    for word in ours:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


@given(words, words)
def test_f1_of_two_texts(prediction: str, gold: str) -> None:
    assert token_f1(prediction, gold) == pytest.approx(slow_f1(prediction, gold))
    assert token_f1(prediction, gold) == token_f1(gold, prediction)
    assert exact_match(prediction, gold) <= token_f1(prediction, gold) <= 1


@given(
    st.lists(
        st.tuples(words, st.lists(words, max_size=2), st.floats(-9, 9)),
        min_size=1,
        max_size=6,
        unique_by=lambda row: row[2],
    )
)
def test_best_thresholds_are_the_best_of_all(rows: list[tuple[str, list[str], float]]) -> None:
    examples = [question(number, golds) for number, (_, golds, _) in enumerate(rows)]
    texts = {f"q{number}": text for number, (text, _, _) in enumerate(rows)}
    odds = {f"q{number}": value for number, (_, _, value) in enumerate(rows)}

    def total(threshold: float) -> float:
        """By answering, threshold by threshold."""
        score = 0.0
        for text, golds, value in rows:
            kept = text if value <= threshold else None
            if golds:  # a refusal is worth nothing here, even where the golds have no word
                known = [gold for gold in golds if slow_f1(gold, "") == 0] or [""]
                score += 0 if kept is None else max(slow_f1(kept, gold) for gold in known)
            else:
                score += not kept
        return 100 * score / len(rows)

    found = best_thresholds(texts, examples, odds)
    totals = {threshold: total(threshold) for threshold in (float("-inf"), *odds.values())}
    assert found["best_f1"] == pytest.approx(max(totals.values()))
    assert totals[found["best_f1_thresh"]] == pytest.approx(found["best_f1"])


# Other judges


@pytest.fixture(scope="module")
def real_examples() -> list[SquadExample]:
    path = DATA / "squad" / "v1.1-xquad-en.json"
    if not path.is_file():
        pytest.skip(f"{path} is missing: set LITKD_DATA to the folder of the real data.")
    return [
        SquadExample(q["id"], q["question"], p["context"], tuple(a["text"] for a in q["answers"]))
        for article in json.loads(path.read_text())["data"]
        for p in article["paragraphs"]
        for q in p["qas"]
    ]


def test_gold_answers_of_real_questions_score_100(real_examples: list[SquadExample]) -> None:
    gold = {example.id: example.answers[0] for example in real_examples}
    scores = squad_scores(gold, real_examples)
    assert (scores["exact"], scores["f1"], scores["total"]) == (100, 100, 1190)
    assert "NoAns_f1" not in scores


def test_agrees_with_torchmetrics_on_real_questions(real_examples: list[SquadExample]) -> None:
    generator = random.Random(0)
    predictions = {}
    for example in real_examples:  # a stretch of the context around the answer
        at = example.context.index(example.answers[0])
        start, end = max(0, at - generator.randrange(20)), at + generator.randrange(1, 60)
        predictions[example.id] = example.context[start:end]
    reference = SQuAD()
    reference.update(
        [{"id": key, "prediction_text": text} for key, text in predictions.items()],
        [
            {"id": e.id, "answers": {"text": list(e.answers), "answer_start": [0] * len(e.answers)}}
            for e in real_examples
        ],
    )
    expected = {name: float(value) for name, value in reference.compute().items()}
    scores = squad_scores(predictions, real_examples)
    assert 0 < scores["exact"] < scores["f1"] < 100
    assert scores["exact"] == pytest.approx(expected["exact_match"])
    assert scores["f1"] == pytest.approx(expected["f1"])
