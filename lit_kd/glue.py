"""``python -m lit_kd.glue --model FOLDER``: an encoder on the tasks of GLUE, in a table beside the MiniLM paper's.

For each task, and each rate, number of epochs and seed that are asked for, the encoder is fine-tuned by the recipe of
:class:`lit_kd.methods.SequenceClassifier` and scored on the dev set after its last epoch. Each result is in a JSON file
as soon as it is there, and a command that is started again goes on where it stopped. The table holds, as the paper's,
the mean over the seeds under the best of the rates and epochs on that very dev set (the paper took four seeds).
"""

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Trainer, seed_everything

from lit_kd.files import replacing
from lit_kd.language.glue import GLUE_TASKS
from lit_kd.methods import SequenceClassifier
from lit_kd.models.fingerprint import saved_fingerprint

# arXiv:2002.10957, dev sets, percent: F1 of SQuAD 2.0, Matthews' correlation of CoLA, accuracy of the others.
PAPER_TASKS = ("squad2", "mnli", "sst2", "qnli", "cola", "rte", "mrpc", "qqp")
PAPER: dict[str, tuple[float, ...]] = {
    "BERT-base, 109M (teacher)": (76.8, 84.5, 93.2, 91.7, 58.9, 68.6, 87.3, 91.3),
    "DistilBERT 6x768, 66M": (70.7, 79.0, 90.7, 85.3, 43.6, 59.9, 87.5, 84.9),
    "TinyBERT 6x768, 66M": (73.1, 83.5, 91.6, 90.5, 42.8, 72.2, 88.4, 90.6),
    "MiniLM 6x768, 66M": (76.4, 84.0, 92.0, 91.0, 49.2, 71.5, 88.4, 91.0),
    "MiniLM 6x384, 22M": (72.4, 82.2, 91.0),
    "MiniLM 6x384 with assistant, 22M": (72.7, 82.4, 91.2),
    "MiniLM 12x384, in-house teacher": (81.7, 85.7, 93.0, 91.5, 58.5, 73.3, 89.5, 91.3),
    "MiniLM 6x384 with assistant, in-house teacher": (75.6, 83.3, 91.5, 90.5, 47.5, 68.8, 88.9, 90.6),
}
TITLES = {"squad2": "SQuAD2", "mnli": "MNLI-m"}  # the others are titled by their folder
KEYS = ("task", "lr", "epochs", "seed")  # of a run

Run = dict[str, Any]  # KEYS, and metrics: fractions by name


def main(args: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table; ``args`` replace ``sys.argv[1:]``."""
    options = parse(args)
    path = Path(options.results or f"runs/glue/{re.sub(r'[^A-Za-z0-9.-]+', '_', options.model).strip('_')}.json")
    settings = {name: getattr(options, name) for name in ("model", "root", "batch_size", "max_length", "precision")}
    settings["sha256"] = saved_fingerprint(options.model)
    runs = {key(run): run for run in read_runs(path, settings)}
    wanted = list(product(options.tasks, options.lr, options.epochs, options.seeds))
    for values in wanted:
        if values not in runs:
            run = dict(zip(KEYS, values, strict=True))
            runs[values] = {**run, "metrics": fine_tune(run, settings, options.accelerator)}
            with replacing(path) as temporary:
                content = {"settings": settings, "runs": list(runs.values())}
                temporary.write_text(json.dumps(content, indent=2) + "\n")
    chosen = [runs[values] for values in dict.fromkeys(wanted)]
    print(table(options.model, chosen, options.squad2), f"\nEvery run: {path}", sep="\n")


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m lit_kd.glue", description="An encoder on the tasks of GLUE.")
    parser.add_argument("--model", required=True, help="folder or hub name of the pretrained encoder, with tokenizer")
    parser.add_argument("--tasks", nargs="+", choices=GLUE_TASKS, default=list(GLUE_TASKS))
    parser.add_argument("--root", help="folder of GLUE's tsv files; default: the hub's data set")
    parser.add_argument("--lr", nargs="+", type=float, default=[2e-5], help="rates; the paper's: 2e-5 3e-5 4e-5 5e-5")
    parser.add_argument("--epochs", nargs="+", type=int, default=[3], help="the paper's: 3 4 5, small tasks up to 10")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="the paper's numbers are means of four")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=128, help="tokens")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--results", help="JSON file; default: runs/glue/<model>.json")
    parser.add_argument("--squad2", type=float, help="F1 of SQuAD 2.0 in percent, of configs/minilm/squad2.yaml")
    options = parser.parse_args(args)
    if min(options.epochs) < 1:
        parser.error(f"--epochs {min(options.epochs)} must be at least 1")
    return options


def key(run: Run) -> tuple[Any, ...]:
    """What tells a run from the others."""
    return tuple(run[name] for name in KEYS)


def read_runs(path: Path, settings: Mapping[str, Any]) -> list[Run]:
    """Runs that are done already.

    Raises:
        ValueError: they are of other settings.
    """
    if not path.is_file():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != settings:
        raise ValueError(f"{path} holds runs of {content['settings']}, not {settings}: give another --results.")
    return content["runs"]


def fine_tune(run: Run, settings: Mapping[str, Any], accelerator: str = "auto") -> dict[str, float]:
    """Metrics on the dev set after the last epoch."""
    from lit_kd.datamodules import GLUEDataModule
    from lit_kd.models import text_encoder

    seed_everything(run["seed"])
    data = GLUEDataModule(
        task=run["task"],
        tokenizer=settings["model"],
        root=settings["root"],
        max_length=settings["max_length"],
        batch_size=settings["batch_size"],
        seed=run["seed"],
    )
    network = text_encoder(settings["model"], head="sequence_classification", num_labels=data.num_labels)
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=settings["precision"],
        max_epochs=run["epochs"],
        check_val_every_n_epoch=run["epochs"],
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(SequenceClassifier(network, data.num_labels, run["task"], lr=run["lr"]), datamodule=data)
    found = trainer.callback_metrics
    return {name.removeprefix("val/"): float(value) for name, value in found.items() if name.startswith("val/")}


def table(name: str, runs: Sequence[Run], squad2: float | None = None) -> str:
    """The paper's rows and ours, in percent; ``avg`` is the paper's, of its eight tasks."""
    found = {"squad2": squad2, **{task: best_mean(task, runs) for task in GLUE_TASKS}}
    ours = {task: score for task, score in found.items() if score is not None}
    rows = {paper: dict(zip(PAPER_TASKS, scores, strict=False)) for paper, scores in PAPER.items()}
    rows[f"**{name}** (seeds: {len({run['seed'] for run in runs})})"] = ours
    groups = {
        **{task: (task,) for task in (*PAPER_TASKS, *ours)},
        "avg": PAPER_TASKS,
        "avg of GLUE": PAPER_TASKS[1:],
    }
    titles = [TITLES.get(task) or (GLUE_TASKS[task].folder if task in GLUE_TASKS else task) for task in groups]
    lines = [f"| dev sets | {' | '.join(titles)} |", "|---" * (len(groups) + 1) + "|"]
    for title, scores in rows.items():
        cells = [
            f"{fmean(scores[task] for task in tasks):.1f}" if scores.keys() >= set(tasks) else "–"
            for tasks in groups.values()
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best_mean(task: str, runs: Sequence[Run]) -> float | None:
    """Percent of the task's first metric: the mean over seeds, under the best rate and number of epochs."""
    values: dict[tuple[float, int], list[float]] = defaultdict(list)
    for run in runs:
        if run["task"] == task:
            values[run["lr"], run["epochs"]].append(100 * run["metrics"][GLUE_TASKS[task].metrics[0]])
    means = [fmean(found) for found in values.values()]
    return max(means, key=lambda mean: -math.inf if math.isnan(mean) else mean, default=None)


if __name__ == "__main__":
    main()
