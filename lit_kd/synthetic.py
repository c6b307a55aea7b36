"""``python -m lit_kd.synthetic --task math --student A --distilled B --teacher C``: what distillation has brought.

The protocol that arXiv:2410.18588 asks for, as far as it can be told: student with the plain prompt and with the
elaborate one (chain of thought), distilled student with the plain prompt, teacher with both, side by side; strict and
lenient scores, answers that can't be read, tokens per answer; intervals over questions and spread over seeds; a judge,
if there is one. Each answer is in a file as soon as it is there, and a command that is started again goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import stdev
from typing import Any

from lit_kd.files import replacing
from lit_kd.intervals import bootstrap_interval
from lit_kd.language.accuracy import ScoreKind, metric_of
from lit_kd.language.engines import Completion, Engine, Sampling, ServerEngine, TransformersEngine
from lit_kd.language.judge import compare
from lit_kd.language.records import Records, fingerprint, read_records
from lit_kd.language.scores import AnswerMetric
from lit_kd.language.tasks import Task, read_task
from lit_kd.models.fingerprint import saved_fingerprint

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


def main(args: Sequence[str] | None = None) -> None:
    """Ask what is missing and print the table; ``args`` replace ``sys.argv[1:]``."""
    options = parse(args)
    task = read_task(options.task)
    elaborate = next((mode for mode in ("cot", "cod") if mode in task.modes), None)
    systems = []
    for names, model, server in (
        ((STUDENT, STUDENT_COT), options.student, None),
        ((DISTILLED,), options.distilled, None),
        ((TEACHER, TEACHER_COT), options.teacher, options.teacher_url),
    ):
        for name, mode in zip(names, ("plain", elaborate), strict=False):
            if model is not None and mode is not None:
                systems.append(System(name, *loader(model, server, options), mode))
    if not systems:
        raise ValueError("There is nobody to ask: give at least one of --student, --distilled and --teacher.")
    modes = dict.fromkeys(["plain", *(system.mode for system in systems)])
    questions = replace(task_questions(options, list(modes)), by_teacher=options.gold_by == "teacher")
    sampling = Sampling(options.max_new_tokens, options.temperature, top_p=options.top_p)
    found = evaluate(systems, questions, sampling, options.seeds, options.out)
    parts = [table(found, questions), "\n".join(notes(found, questions))]
    if options.judge is not None:
        parts.insert(1, judged(loader(options.judge, options.judge_url, options)[0](), found, questions))
        if options.judge in (options.teacher, options.student, options.distilled):
            parts.append("The judge is one of the systems: judges prefer what they wrote themselves.")
    text = "\n\n".join(parts)
    with replacing(options.out / "table.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(text, f"\nEvery answer: {options.out}", sep="\n")


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lit_kd.synthetic", description="What distillation has brought.")
    parser.add_argument("--task", required=True, help="a task of ours, or a YAML file")
    parser.add_argument("--root", help="folder of test.jsonl; default: the task's examples on the hub")
    parser.add_argument("--student", help="folder or hub name of the student before distillation")
    parser.add_argument("--distilled", help="folder of the student after it")
    parser.add_argument("--teacher", help="folder or name of the teacher")
    parser.add_argument("--teacher_url", help="of an OpenAI-compatible server that has the teacher")
    parser.add_argument("--judge", help="folder or name of a model that compares answers, of another family")
    parser.add_argument("--judge_url", help="of the server that has the judge")
    parser.add_argument("--gold_by", choices=("people", "teacher"), default="people", help="who wrote the gold answers")
    parser.add_argument("--limit", type=int, help="ask the first questions only")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="greedy answers need one")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=16, help="answers that a model here writes at once")
    parser.add_argument("--device", default="cpu", help="of models here, such as cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/synthetic"), help="folder for answers and table.md")
    return parser.parse_args(args)


def loader(model: str, url: str | None, options: argparse.Namespace) -> tuple[Callable[[], Engine], str]:
    """What loads a model, and what tells it from others."""
    if url is not None:
        return partial(ServerEngine, model, url), f"{model} at a server"
    digest = (saved_fingerprint(model) or "hub")[:16]
    return partial(local, model, options.batch_size, options.device), f"{model} {digest}"


def local(model: str, batch_size: int, device: str = "cpu") -> Engine:
    """A model of this machine."""
    from lit_kd.language.chat import lm_tokenizer
    from lit_kd.models import causal_lm

    return TransformersEngine(causal_lm(model).to(device), lm_tokenizer(model), batch_size)


def task_questions(options: argparse.Namespace, modes: Sequence[str]) -> Questions:
    """The test questions of a task."""
    from lit_kd.datamodules import TaskDataModule

    shared: dict[str, Any] = {"task": options.task, "root": options.root, "limit": options.limit}
    return questions_of([TaskDataModule(mode=mode, **shared) for mode in modes])


def questions_of(data: Sequence[Any]) -> Questions:
    """Of :class:`lit_kd.datamodules.TaskDataModule`, the same task once for each mode."""
    prompts: dict[str, list[Any]] = {}
    gold: list[Any] = []
    for one in data:
        one.setup("test")
        batches = [batch for each in one.test_dataloader() for batch in each]
        prompts[one.mode] = [prompt for batch in batches for prompt in batch["prompt"]]
        gold = [right for batch in batches for right in batch["gold"]]
    return Questions(prompts, gold, data[0].kind, data[0].labels, partial(plainly, data[0].task))


def plainly(task: Task, mode: str, text: str) -> str:
    """The answer in a reply to an elaborate prompt, in the form that the plain prompt asks for."""
    if mode == "plain":
        return text
    reply = task.read(mode, text)
    return text if reply.answer is None else task.target("answer", reply)


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


if __name__ == "__main__":
    main()
