"""The whole of MCMI distillation on scikit-learn's digits: offline, on a CPU, in under three minutes.

Runs the command lines of the README one after the other, prints one table and writes ``runs/digits/demo.png``.
"""

import json
import shlex
import statistics
import time
import warnings
from pathlib import Path

from matplotlib.figure import Figure

from lit_kd.cli import LitKDCLI
from lit_kd.files import replacing

RUNS = Path("runs/digits")
SEEDS = (0, 1, 2)
QUIET = "--trainer.enable_progress_bar false --trainer.enable_model_summary false"


def lit_kd(words: str) -> LitKDCLI:
    """Run one command in this process (it saves the imports) and show it."""
    print(f"$ lit-kd {words}", flush=True)
    return LitKDCLI(shlex.split(f"{words} {QUIET}"))


def fit_and_test(words: str, version: str) -> dict[str, float]:
    """Fit, then test the weights of the last epoch; all numbers of both."""
    cli = lit_kd(f"fit {words} --trainer.logger.init_args.version {version}")
    numbers = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    return numbers | dict(cli.trainer.test(cli.model, cli.datamodule, verbose=False)[0])


def main() -> None:
    """Teacher, two fine-tuned teachers, three students each; table and picture."""
    warnings.simplefilter("ignore")
    began = time.monotonic()
    lit_kd("fit -c configs/mcmi/digits_teacher.yaml")
    teachers: dict[str, dict[str, float]] = {}
    students: dict[str, list[float]] = {}
    for name, weight in (("mll", 0), ("mcmi", 0.25)):
        words = f"-c configs/mcmi/digits_mcmi_teacher.yaml --model.init_args.weight {weight}"
        teachers[name] = fit_and_test(words, f"{name}_teacher")
        students[name] = [student_accuracy(name, seed) for seed in SEEDS]
    print("\n" + table(teachers, students))
    draw(RUNS / "demo.png", students)
    with replacing(RUNS / "demo.json") as temporary:
        temporary.write_text(json.dumps({"teachers": teachers, "students": students}, indent=2))
    print(f"\nPicture: {RUNS / 'demo.png'}; {time.monotonic() - began:.0f} s in all.")


def student_accuracy(teacher: str, seed: int) -> float:
    """Test accuracy in percent, last epoch; the seed fixes the few images, their order and the initialisation."""
    checkpoint = RUNS / f"{teacher}_teacher" / "export" / "model.safetensors"
    words = f"-c configs/mcmi/digits_student.yaml --seed_everything {seed} --data.init_args.seed {seed}"
    words += f" --model.init_args.teacher.init_args.checkpoint {checkpoint}"
    return 100 * fit_and_test(words, f"student_{teacher}_{seed}")["test/acc"]


def table(teachers: dict[str, dict[str, float]], students: dict[str, list[float]]) -> str:
    """One line a teacher."""
    head = f"student test acc %, mean ± sd ({len(SEEDS)} seeds)"
    lines = [f"{'teacher':8} {'test acc %':>10} {'CMI nats':>9} {'log-lik nats':>12}   {head}"]
    for name, own in teachers.items():
        accuracy = students[name]
        each = ", ".join(f"{value:.1f}" for value in accuracy)
        left = f"{name:8} {100 * own['test/acc']:10.2f} {own['train_set/cmi']:9.4f}"
        right = f"{statistics.mean(accuracy):.2f} ± {statistics.stdev(accuracy):.2f}   ({each})"
        lines.append(f"{left} {own['train_set/log_likelihood']:12.4f}   {right}")
    return "\n".join(lines)


def draw(path: Path, students: dict[str, list[float]]) -> None:
    """CMI while the teachers are tuned, and the accuracy of their students."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in students:
        rows = [line.split(",") for line in (RUNS / f"{name}_teacher" / "curves.csv").read_text().splitlines()]
        column = rows[0].index("train_set/cmi")
        left.plot([int(row[0]) + 1 for row in rows[1:]], [float(row[column]) for row in rows[1:]], "o-", label=name)
    left.set(xlabel="epoch of fine-tuning", ylabel="CMI on the training set (nats)", title="teachers")
    left.legend()
    for place, accuracy in enumerate(students.values()):
        right.plot([place] * len(accuracy), accuracy, "o", color=f"C{place}")
        right.hlines(statistics.mean(accuracy), place - 0.2, place + 0.2, color=f"C{place}")
    right.set_xticks(range(len(students)), [f"{name} teacher" for name in students])
    right.set(xlim=(-0.5, len(students) - 0.5), ylabel="test accuracy (%)", title="students, 5 % of the images")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


if __name__ == "__main__":
    main()
