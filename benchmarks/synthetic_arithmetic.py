r"""Distillation through synthetic data on generated word problems, sized for a CPU: do a teacher's texts teach more?

    python -m benchmarks.synthetic_arithmetic --out runs/synthetic_arithmetic --seeds 0 1 2

For each seed a small Llama, the teacher, learns to solve problems of one to three steps by a chain of thought, and a
smaller one, the student, learns less, and mostly bare answers. Then the teacher solves new problems, and what ends with
the gold answer is kept (`Synthesis`). The systems, on held-out problems, greedy:

- student, plain and student, chain of thought: before;
- gold answers: fine-tuned on (plain prompt, gold answer) of the same problems, without a teacher;
- distilled, answers: on the teacher's answers, its reasoning thrown away, as published;
- distilled, rationales: on its reasoning and answer, behind the plain prompt;
- teacher, chain of thought.

All students are fine-tuned from the same weights by one recipe for as many steps. Every finished run leaves a file in
``out`` and is not run again.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything

from benchmarks.runs import fit, once, print_systems, spread, trainer
from lit_kd.datamodules import ArithmeticDataModule, ChatDataModule, TaskDataModule
from lit_kd.files import replacing
from lit_kd.language.answers import extract_boxed
from lit_kd.language.arithmetic import make_arithmetic, write_start
from lit_kd.language.comparison import STUDENT, STUDENT_COT, TEACHER_COT, System, evaluate, table
from lit_kd.language.engines import Sampling
from lit_kd.language.records import read_records
from lit_kd.methods import LanguageModel, Synthesis, SyntheticDistill
from lit_kd.models import causal_lm
from lit_kd.synthetic import local, questions_of

LEVELS = (1, 2, 3)
LENGTH = 96  # tokens of an answer
PLAIN, THINK = "Answer.", "Think, then answer."
TASK = f"""\
system: {PLAIN}
user: "{{question}}"
columns: {{question: question, gold: answer}}
check: number
metric: number
modes:
  plain: {{parser: final}}
  cot: {{system: "{THINK}", parser: final}}
targets:
  answer: "\\\\boxed{{{{answer}}}}"
  rationale+answer: "{{rationale}}\\n\\\\boxed{{{{answer}}}}"
"""
GOLD, ANSWERS, RATIONALES = "gold answers", "distilled, answers", "distilled, rationales"
SYSTEMS = (STUDENT, STUDENT_COT, GOLD, ANSWERS, RATIONALES, TEACHER_COT)


def chats(path: Path, seed: int, samples: int, thinking: float) -> str:
    """Problems with solutions behind the prompt to think, for a share of them, or else bare answers; the file."""
    rows = []
    for index in range(samples):
        problem = make_arithmetic(seed, "train", index, LEVELS).problem()
        thinks = index % 1000 < 1000 * thinking  # the index decides on nothing else
        rows.append(chat(problem.question, str(problem.solution if thinks else boxed(problem.gold)), thinks))
    return write(path, rows)


def chat(question: str, answer: str, thinks: bool = False) -> list[dict[str, str]]:
    """A training row."""
    says = {"system": THINK if thinks else PLAIN, "user": question, "assistant": answer}
    return [{"role": role, "content": content} for role, content in says.items()]


def boxed(answer: str) -> str:
    """The bare answer."""
    return f"\\boxed{{{answer}}}"


def write(path: Path, rows: Sequence[Any]) -> str:
    """Chats as JSON lines; the path."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return str(path)


def run(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Right answers of each system in percent."""
    out = args.out / f"seed{seed}"
    task = str(out / "task.yaml")
    teacher, student = out / "teacher", out / "student"

    def learn(name: str, width: int, layers: int, samples: int, thinking: float, epochs: int) -> dict[str, float]:
        seed_everything(seed)
        start = write_start(out / f"{name}_start", width, layers)
        file = chats(out / f"{name}.jsonl", 1000 * seed + (name == "student"), samples, thinking)
        data = ChatDataModule(chats=file, tokenizer=start, batch_size=32, seed=seed)
        adamw = partial(torch.optim.AdamW, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
        module = LanguageModel(causal_lm(start, init="random"), warmup=0.05, optimizer=adamw)
        return fit(module, data, epochs, out / name)

    once(out, "learn_teacher", lambda: learn("teacher", 128, 4, args.samples, 0.9, args.epochs))
    once(
        out,
        "learn_student",
        lambda: learn("student", 96, 3, args.student_samples, args.student_thinking, args.student_epochs),
    )
    with replacing(Path(task)) as temporary:
        temporary.write_text(TASK)

    def inputs(mode: str, **settings: Any) -> TaskDataModule:
        problems = ArithmeticDataModule(
            tokenizer=str(student), levels=LEVELS, samples=args.problems, test_samples=args.test, seed=1000 * seed + 2
        )
        return TaskDataModule(task=task, mode=mode, problems=problems, eval_batch_size=128, **settings)

    def synthesize() -> dict[str, float]:
        greedy = Sampling(temperature=0.0, max_new_tokens=LENGTH)
        module = Synthesis(
            str(out / "rows"),
            greedy,
            "rationale+answer",
            attempts=1,
            network=causal_lm(str(teacher)),
            answer_batch_size=128,
        )
        trainer().predict(module, inputs("cot"))
        rows = read_records(out / "rows")
        kept = [row for row in rows if row["reason"] is None]
        write(out / "rationales.jsonl", [row["messages"] for row in kept])
        # Greedy replies are the same whatever is kept of them: the teacher need not be asked twice.
        answers = [(row["messages"][1]["content"], extract_boxed(row["messages"][-1]["content"])) for row in kept]
        write(out / "answers.jsonl", [chat(question, boxed(str(answer))) for question, answer in answers])
        write(out / "gold.jsonl", [chat(row["messages"][1]["content"], boxed(row["gold"])) for row in rows])
        return {"problems": len(rows), "kept": len(kept)}

    kept = int(once(out, "write", synthesize)["kept"])
    files = {GOLD: "gold.jsonl", ANSWERS: "answers.jsonl", RATIONALES: "rationales.jsonl"}
    for number, (_, file) in enumerate(files.items()):

        def distil(number: int = number, file: str = file) -> dict[str, float]:
            seed_everything(seed)
            data = ChatDataModule(
                chats=str(out / file), tokenizer=str(student), batch_size=32, samples_per_epoch=kept, seed=seed
            )
            adamw = partial(torch.optim.AdamW, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
            module = SyntheticDistill(causal_lm(str(student)), warmup=0.05, optimizer=adamw)
            return fit(module, data, args.distil_epochs, out / f"tuned{number}")

        once(out, f"tune{number}", distil)
    folders = {STUDENT: student, STUDENT_COT: student, TEACHER_COT: teacher}
    folders |= {name: out / f"tuned{number}" for number, name in enumerate(files)}
    systems = [System(name, partial(local, str(folders[name]), 128), str(folders[name]), "plain") for name in SYSTEMS]
    systems = [replace(one, mode="cot") if one.name in (STUDENT_COT, TEACHER_COT) else one for one in systems]
    questions = questions_of([inputs("plain"), inputs("cot")])
    greedy = Sampling(temperature=0.0, max_new_tokens=LENGTH)
    found = evaluate(systems, questions, greedy, [0], out / "answers")
    print(f"seed {seed}", table(found, questions), sep="\n", flush=True)
    return {name: 100 * scored.numbers()["pass@1"] for name, scored in found.items()}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/synthetic_arithmetic"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=40000, help="problems that the teacher learns from")
    parser.add_argument("--epochs", type=int, default=2, help="of the teacher")
    parser.add_argument("--student-samples", type=int, default=16000)
    parser.add_argument("--student-thinking", type=float, default=0.3, help="share of them with a chain of thought")
    parser.add_argument("--student-epochs", type=int, default=2)
    parser.add_argument("--problems", type=int, default=6000, help="that the teacher solves for the student")
    parser.add_argument("--distil-epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3, help="of the fine-tuning")
    parser.add_argument("--test", type=int, default=1000, help="held-out problems")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {vars(args)}")
    found = [run(args, seed) for seed in args.seeds]
    print_systems(SYSTEMS, found)
    for name in (STUDENT, STUDENT_COT, GOLD, ANSWERS):
        gains = [numbers[RATIONALES] - numbers[name] for numbers in found]
        print(f"gain of {RATIONALES} over {name}: {spread(gains)} points")


if __name__ == "__main__":
    main()
