"""Several systems answer the same questions, side by side: scores, intervals, a table, and what not to read into it.

Each answer is in a file as soon as it is there, and a comparison that is started again goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import stdev
from typing import Any

from lit_kd.intervals import bootstrap_interval
from lit_kd.language.accuracy import ScoreKind, metric_of
from lit_kd.language.engines import Completion, Engine, Sampling
from lit_kd.language.judge import compare
from lit_kd.language.records import Records, fingerprint, read_records
from lit_kd.language.scores import AnswerMetric

STUDENT, STUDENT_COT = "student, plain", "student, chain of thought"
DISTILLED = "distilled, plain"
TEACHER, TEACHER_COT = "teacher, plain", "teacher, chain of thought"
FEW_QUESTIONS, FEW_SEEDS = 100, 3
# Of a kind of answers: the main column, and what an answer is worth whatever its format.
COLUMNS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("number", "math", "integer"), ("pass@1", "flexible")),
    "label": ("strict", "lenient"),
    "overlap": ("rougeL", None),
    "summary": ("entity_density", None),
}


@dataclass(frozen=True)
class System:
    """A model with a way to ask it.

    Attributes:
        name: In the table.
        engine: Loads it; called only where answers are missing.
        model: What tells its answers from those of another model, such as path and hash.
        mode: Of the prompts: "plain", or that of an elaborate prompt.
    """

    name: str
    engine: Callable[[], Engine]
    model: str
    mode: str = "plain"


@dataclass(frozen=True)
class Questions:
    """What all systems are asked.

    Attributes:
        prompts: By mode; in each as many.
        gold: The right answers, or references.
        kind: Of the answers, see :func:`lit_kd.language.accuracy.metric_of`.
        labels: All there are, for "label".
        read: ``read(mode, text)`` is the answer in a reply as the plain prompt wants it, such as that in the JSON of a
            chain of thought; the reply itself where it can't be read.
        by_teacher: Gold is what the teacher answered: scores then are of imitation.
    """

    prompts: dict[str, list[Any]]
    gold: list[Any]
    kind: ScoreKind
    labels: Sequence[str] = ()
    read: Callable[[str, str], str] = lambda mode, text: text
    by_teacher: bool = False


@dataclass(frozen=True)
class Scored:
    """A system's answers to all questions, one for each seed, and their scores."""

    answers: list[list[Completion]]
    metric: AnswerMetric

    def numbers(self) -> dict[str, float]:
        """Scores with intervals over questions; ``sd``: of the main one over seeds, where there are several."""
        first = self.metric.columns[0]
        found = self.metric.compute()
        if len(self.answers[0]) > 1:
            found["sd"] = stdev(self.metric.each()[first].mean(0).tolist())
        return found


def evaluate(
    systems: Sequence[System], questions: Questions, sampling: Sampling, seeds: Sequence[int], out: Path
) -> dict[str, Scored]:
    """Let every system answer every question, once for each seed.

    Args:
        systems: what is compared.
        questions: the same for all.
        sampling: of all of them; its seed is replaced by each of ``seeds``.
        seeds: at a temperature above 0 at least three; at 0 one is enough.
        out: folder for the answers, kept and not asked for again.

    Raises:
        ValueError: too few seeds; prompts of a mode are missing or not as many as golds; ``out`` holds answers of other
            models or settings.
    """
    if sampling.temperature > 0 and len(set(seeds)) < FEW_SEEDS:
        raise ValueError(
            f"temperature={sampling.temperature} with seeds={list(seeds)}: one draw is no result, give at least "
            f"{FEW_SEEDS} seeds, or temperature 0."
        )
    seeds = list(dict.fromkeys(seeds)) if sampling.temperature > 0 else list(seeds)[:1]
    for system in systems:
        if len(questions.prompts.get(system.mode, ())) != len(questions.gold):
            raise ValueError(f"The mode {system.mode!r} has not a prompt for each of {len(questions.gold)} questions.")
    found = {}
    for system in systems:
        answers = [list(of_one) for of_one in zip(*answers_of(system, questions, sampling, seeds, out), strict=True)]
        metric = metric_of(questions.kind, len(seeds), questions.labels)
        read = [[replace(one, text=questions.read(system.mode, one.text)) for one in of_one] for of_one in answers]
        metric.update(read, questions.gold)
        found[system.name] = Scored(answers, metric)
    return found


def answers_of(
    system: System, questions: Questions, sampling: Sampling, seeds: Sequence[int], out: Path, batch_size: int = 64
) -> list[list[Completion]]:
    """The answers for each seed, from files or of the system."""
    engine: Engine | None = None
    prompts = questions.prompts[system.mode]
    every = []
    for seed in seeds:
        drawn = replace(sampling, samples=1, seed=seed)
        folder = out / f"{system.name.replace(', ', '-').replace(' ', '_')}-{seed}"
        manifest = {"model": system.model, "mode": system.mode, "sampling": asdict(drawn), "prompts": len(prompts)}
        records = Records(folder, {**manifest, "asked": fingerprint([prompts, questions.gold])})
        missing = [index for index in range(len(prompts)) if index not in records.done]
        for start in range(0, len(missing), batch_size):
            part = missing[start : start + batch_size]
            engine = engine or system.engine()
            replies = engine.generate([prompts[index] for index in part], drawn, part)
            rows = [{"index": index, **asdict(of_one[0])} for index, of_one in zip(part, replies, strict=True)]
            records.append([row for row in rows if row["finish_reason"] != "error"])
        rows = read_records(folder)
        if len(rows) < len(prompts):
            raise RuntimeError(f"{system.name}: {len(prompts) - len(rows)} questions got no answer. Start again.")
        every.append([Completion(**{name: value for name, value in row.items() if name != "index"}) for row in rows])
    return every


def gain(ours: Scored, theirs: Scored, column: str) -> tuple[float, float, float]:
    """Mean difference of a column question by question, and its 95 % interval (bootstrap over the questions)."""
    one, other = (scored.metric.totals()[column] / scored.metric.samples for scored in (ours, theirs))
    return float((one - other).mean()), *bootstrap_interval(one - other)


def table(found: dict[str, Scored], questions: Questions) -> str:
    """A row for each system."""
    first, lenient = COLUMNS[questions.kind]
    score = "imitation of the teacher" if questions.by_teacher else first
    names = [name for name in (lenient, "unparsable", "words", "finished", "rougeL") if name and name != first]
    every = {system: scored.numbers() for system, scored in found.items()}
    names = [name for name in names if all(name in numbers for numbers in every.values())]
    titles = ["", f"{score} [95 %]", "sd over seeds", *names, "tokens per answer"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for system, numbers in every.items():
        main = "{} [{}, {}]".format(*(shown(first, numbers[first + end]) for end in ("", "_low", "_high")))
        spread = shown(first, numbers["sd"]) if "sd" in numbers else "–"
        cells = [system, main, spread, *(shown(name, numbers[name]) for name in names), f"{numbers['tokens']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(found: dict[str, Scored], questions: Questions) -> list[str]:
    """What must not be read out of the table."""
    count = len(questions.gold)
    first, lenient = COLUMNS[questions.kind]
    said = []
    if count < FEW_QUESTIONS:
        said.append(f"{count} questions are a smoke test, no result.")
    if questions.by_teacher:
        said.append(
            "Gold is the teacher's: scores are of imitation, not of accuracy, and the teacher's own mean little."
        )
    if questions.kind == "summary":
        said.append("Rouge-L against human references is secondary: it punishes better summaries. Ask a judge.")
    if {STUDENT, DISTILLED} <= found.keys():
        ours, theirs = found[DISTILLED], found[STUDENT]
        for column in (first, lenient):
            if column is not None:
                mean, low, high = (shown(column, number) for number in gain(ours, theirs, column))
                said.append(f"Gain of the distilled student over the student, {column}: {mean} [{low}, {high}].")
        if lenient is not None and gain(ours, theirs, first)[1] > 0 >= gain(ours, theirs, lenient)[1]:
            said.append(f"The gain may be one of format: {lenient}, whose interval holds 0, does not confirm it.")
    said.append("Whether a public test set was in the pre-training of these models, no number here can tell.")
    return said


def judged(judge: Engine, found: dict[str, Scored], questions: Questions) -> str:
    """The distilled student's answers of the first seed against those of each other system."""
    asked = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in questions.prompts["plain"]]
    texts = {name: [of_one[0].text for of_one in scored.answers] for name, scored in found.items()}
    columns = ("win", "tie", "loss", "position_bias", "unparsable", "longer_wins")
    lines = [f"| {DISTILLED} against | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in found:
        if name != DISTILLED:
            numbers = compare(judge, asked, texts[DISTILLED], texts[name]).numbers()
            cells = [f"{100 * numbers[column]:.1f}" if column in numbers else "–" for column in columns]
            cells[0] += " [{:.1f}, {:.1f}]".format(*(100 * numbers[f"win_{end}"] for end in ("low", "high")))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(name: str, value: float) -> str:
    """A number as the table has it: fractions in percent."""
    return f"{value:.1f}" if name in ("rougeL", "words") else f"{100 * value:.1f}"
