"""``python -m lit_kd.synthetic --task math --student A --distilled B --teacher C``: what distillation has brought.

The protocol that arXiv:2410.18588 asks for, as far as it can be told: student with the plain prompt and with the
elaborate one (chain of thought), distilled student with the plain prompt, teacher with both, side by side; strict and
lenient scores, answers that can't be read, tokens per answer; intervals over questions and spread over seeds; a judge,
if there is one. Each answer is in a file as soon as it is there, and a command that is started again goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lit_kd.files import replacing
from lit_kd.language.comparison import (
    DISTILLED,
    STUDENT,
    STUDENT_COT,
    TEACHER,
    TEACHER_COT,
    Questions,
    System,
    evaluate,
    judged,
    notes,
    table,
)
from lit_kd.language.engines import Engine, Sampling, ServerEngine, TransformersEngine
from lit_kd.language.tasks import Task, read_task
from lit_kd.models.fingerprint import saved_fingerprint


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


if __name__ == "__main__":
    main()
