"""The parts of MGSR, one after the other, on generated word problems, sized for a CPU.

    python -m benchmarks.mgsr_ablation --out runs/mgsr_ablation --seeds 0 1 2

For each seed a small Llama, the teacher, learns word problems (`ArithmeticDataModule`), and a smaller one of the same
tokenizer, the student, a few of them. From that student each system takes as many steps on the same problems, at the
same rate; as in the paper's additive ablation a row has what the rows before it have:

- sft: cross entropy alone;
- kl: and the forward KL from the teacher, on the data's solutions;
- scrg: half of the steps on what the student writes, corrected by SCRG;
- dac: DAC-KL in the place of the forward KL;
- span: and the relations of neighbours in spans, all of MGSR.

The source of scrg is `OnPolicy(0.5)`, not the paper's replay schedule: the latter waits for the validation loss to
rise, which does not happen in runs as short as these.

The table has the share of right greedy answers to held-out problems in percent, Rouge-L of these answers with the
held-out solutions times 100, the KL from the teacher on held-out solutions in nats a token, and seconds a step. Every
finished run leaves a file in ``out`` and is not run again. Compare rows within a seed: seeds differ in the teacher.
"""

import argparse
import statistics
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything

from benchmarks.runs import fit, once, spread, trainer
from lit_kd.datamodules import ArithmeticDataModule
from lit_kd.language.answers import grade
from lit_kd.language.arithmetic import write_start
from lit_kd.language.chunkers import RegexChunker
from lit_kd.language.engines import Sampling
from lit_kd.language.overlap import rouge_l
from lit_kd.losses import DACKL, ForwardKL
from lit_kd.methods import SCRG, FixedData, LanguageDistill, LanguageModel, MGSRDistill, OnPolicy
from lit_kd.models import causal_lm

LEVELS, LENGTH = (1, 2), 48  # equations of a problem; tokens of an answer
STUDENT = {"hidden_size": 64, "intermediate_size": 170, "num_hidden_layers": 2, "head_dim": 16}
HELD_OUT = 1000  # seed of the problems that nothing is trained on
SYSTEMS = ("start", "sft", "kl", "scrg", "dac", "span")


def data(args: argparse.Namespace, out: Path, samples: int, seed: int, **settings: Any) -> ArithmeticDataModule:
    """Problems; ``seed`` gives others."""
    return ArithmeticDataModule(
        tokenizer=str(out / "tokenizer"),
        levels=LEVELS,
        samples=samples,
        test_samples=args.test,
        batch_size=32,
        eval_batch_size=128,
        seed=seed,
        **settings,
    )


def recipe(lr: float) -> dict[str, Any]:
    """Of all trainings: AdamW with a short memory and a short warm-up."""
    adamw = partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    return {"warmup": 0.05, "optimizer": adamw}


def distiller(args: argparse.Namespace, out: Path, name: str, seed: int) -> Any:
    """The module of a system, each with what the ones before it have."""
    if name == "sft":
        return LanguageModel(causal_lm(str(out / "start")), **recipe(args.lr))
    parts = SYSTEMS[: SYSTEMS.index(name) + 1]
    writing: Any = {"sampling": Sampling(LENGTH, seed=seed), "max_length": 512}
    return MGSRDistill(
        causal_lm(str(out / "start")),
        causal_lm(str(out / "teacher")),
        source=SCRG(OnPolicy(0.5, **writing)) if "scrg" in parts else FixedData(),
        divergence=DACKL() if "dac" in parts else ForwardKL(),
        chunker=RegexChunker() if "span" in parts else None,
        span_weight=1.0 if "span" in parts else 0.0,
        **recipe(args.lr),
    )


def run(args: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Numbers of the systems."""
    out = args.out / f"seed{seed}"

    def learn(role: str, samples: int, epochs: int, changes: dict[str, Any]) -> dict[str, float]:
        seed_everything(seed, verbose=False)
        network = causal_lm(write_start(out / "tokenizer"), init="random", config=changes)
        module = LanguageModel(network, **recipe(3e-3))
        return fit(module, data(args, out, samples, seed), epochs, out / role)

    once(out, "learn_teacher", lambda: learn("teacher", args.teacher_samples, args.teacher_epochs, {}))
    once(out, "learn_student", lambda: learn("start", args.samples, args.student_epochs, STUDENT))

    numbers = {name: evaluate(args, out, name) for name in ("teacher", "start")}
    for name in SYSTEMS[1:]:

        def distil(name: str = name) -> dict[str, float]:
            seed_everything(seed, verbose=False)
            problems = data(args, out, args.samples, seed, samples_per_epoch=32 * args.steps)
            return fit(distiller(args, out, name, seed), problems, 1, out / name)

        found = once(out, f"fit_{name}", distil)
        numbers[name] = {**evaluate(args, out, name), "seconds": found["seconds"]}
    return numbers


def evaluate(args: argparse.Namespace, out: Path, name: str) -> dict[str, float]:
    """Of one network, on problems that none was trained on."""
    return once(out, f"test_{name}", lambda: {**answers(args, out, name), "kl": divergence(args, out, name)})


def answers(args: argparse.Namespace, out: Path, name: str) -> dict[str, float]:
    """Right greedy answers, and their Rouge-L, in percent."""
    held_out = data(args, out, 1, HELD_OUT)
    greedy = Sampling(LENGTH, temperature=0.0)
    module = LanguageModel(causal_lm(str(out / name)), sampling=greedy, answer_batch_size=128)
    found: Any = trainer().predict(module, held_out)
    rows = [row for batch in found for row in batch]
    texts, problems = [row["answers"][0]["text"] for row in rows], held_out.problems("test")
    right = [grade(text, row["gold"], "number").strict for text, row in zip(texts, rows, strict=True)]
    solutions = [str(problems[row["index"]].solution) for row in rows]
    overlap = [rouge_l(text, [solution]) for text, solution in zip(texts, solutions, strict=True)]
    return {"right": 100 * statistics.mean(right), "rougeL": 100 * statistics.mean(overlap)}


def divergence(args: argparse.Namespace, out: Path, name: str) -> float:
    """KL from the teacher, nats a token of solutions."""
    module = LanguageDistill(causal_lm(str(out / name)), causal_lm(str(out / "teacher")))
    rows = data(args, out, args.test, HELD_OUT, val_fraction=0.5)
    (found,) = trainer().validate(module, rows, verbose=False)
    return found["val/loss"]


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mgsr_ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--teacher-samples", type=int, default=30000, help="problems that the teacher learns from")
    parser.add_argument("--teacher-epochs", type=int, default=1)
    parser.add_argument("--samples", type=int, default=600, help="problems of the student")
    parser.add_argument("--student-epochs", type=int, default=10, help="before distillation")
    parser.add_argument("--steps", type=int, default=400, help="of each system")
    parser.add_argument("--lr", type=float, default=1e-3, help="of each system")
    parser.add_argument("--test", type=int, default=500, help="held-out problems")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {vars(args)}")
    found = [run(args, seed) for seed in args.seeds]
    columns = ("right", "rougeL", "kl", "seconds")
    print("| | right, % | Rouge-L | KL, nats | seconds a step |\n|---|---|---|---|---|")
    for name in ("teacher", *SYSTEMS):
        cells = [[numbers[name][column] for numbers in found if column in numbers[name]] for column in columns]
        print(f"| {name} | " + " | ".join(map(spread, cells)) + " |")
    for former, name in pairwise(SYSTEMS[1:]):
        gain = [numbers[name]["right"] - numbers[former]["right"] for numbers in found]
        print(f"{name} over {former}: {spread(gain)} points of right answers")


if __name__ == "__main__":
    main()
