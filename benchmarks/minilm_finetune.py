"""MiniLM on real text, sized for a CPU: a small student with and without distillation, fine-tuned on GLUE tasks.

    python -m benchmarks.minilm_finetune --data FOLDER --teacher MINILM_FOLDER --out runs/minilm_finetune

1. Texts: sentences of GLUE's training files, contexts of SQuAD and questions of GSM8K under ``data`` (folders glue,
   squad, gsm8k in their official formats), one file, each text once.
2. The student, of the teacher's architecture with ``--layers`` and ``--width``, learns its relations on them.
3. The distilled student, and the same network at random, are fine-tuned on STS-B and on ``--samples`` rows of SST-2, by
   the same recipe, over several seeds. Last-epoch numbers on the dev sets.

Every finished run leaves a file in ``out`` and is not run again.
"""

import argparse
import json
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

from benchmarks.runs import once, spread
from lit_kd.callbacks import ExportStudent
from lit_kd.datamodules import GLUEDataModule, TextCorpusDataModule
from lit_kd.files import replacing
from lit_kd.language.glue import GLUE_TASKS, read_glue
from lit_kd.methods import MiniLMDistill, SequenceClassifier
from lit_kd.models import text_encoder

TASKS = ("sst2", "stsb")


def corpus(data: Path, out: Path) -> str:
    """One text a line, each once, in a file."""
    texts: dict[str, None] = {}
    for task in GLUE_TASKS.values():
        for column in read_glue(data / "glue" / task.folder / "train.tsv", task).texts:
            texts |= dict.fromkeys(column)
    for file in sorted((data / "squad").glob("*.json")):
        articles = json.loads(file.read_text())["data"]
        texts |= dict.fromkeys(paragraph["context"] for article in articles for paragraph in article["paragraphs"])
    lines = (data / "gsm8k" / "train.jsonl").read_text().splitlines()
    texts |= dict.fromkeys(json.loads(line)["question"] for line in lines)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    every = [" ".join(text.split()) for text in texts]
    with replacing(out / "corpus.txt") as temporary:
        temporary.write_text("\n".join(every[i] for i in order) + "\n")
    return str(out / "corpus.txt")


def distil(args: argparse.Namespace) -> dict[str, float]:
    """The student's folder is ``out/student``; its loss on held-out texts."""

    def start() -> dict[str, float]:
        seed_everything(0)
        config = {"num_hidden_layers": args.layers, "hidden_size": args.width, "intermediate_size": 4 * args.width}
        student = text_encoder(args.teacher, init="random", config=config)
        module = MiniLMDistill(
            student, text_encoder(args.teacher), heads=args.heads, lr=args.lr, warmup_steps=args.steps // 10
        )
        data = TextCorpusDataModule(
            tokenizer=args.teacher, files=corpus(args.data, args.out), max_length=128, val_fraction=0.01
        )
        trainer = Trainer(
            max_steps=args.steps,
            max_epochs=-1,
            gradient_clip_val=1.0,
            precision=args.precision,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[ExportStudent(str(args.out / "student"))],
            val_check_interval=args.steps // 4,
            check_val_every_n_epoch=None,
        )
        (before,) = trainer.validate(module, data, verbose=False)
        trainer.fit(module, data)
        numbers = {"before": before["val/loss"], "after": float(trainer.callback_metrics["val/loss"])}
        numbers["texts"], numbers["rows"] = sum(1 for _ in data.documents()), len(data.sets["train"][0])
        return numbers

    return once(args.out, "distil", start)


def fine_tune(args: argparse.Namespace, name: str, task: str, seed: int) -> dict[str, float]:
    """Dev metrics of one run."""

    def start() -> dict[str, float]:
        seed_everything(seed)
        rows = {"sst2": args.samples / 67349}.get(task, 1.0)
        data = GLUEDataModule(
            task=task, tokenizer=args.teacher, root=args.data / "glue", train_fraction=rows, seed=seed, batch_size=32
        )
        init = "pretrained" if name == "distilled" else "random"
        student = str(args.out / "student")
        network = text_encoder(student, "sequence_classification", data.num_labels, init=init)  # type: ignore[arg-type]
        trainer = Trainer(
            max_epochs=args.epochs,
            check_val_every_n_epoch=args.epochs,
            gradient_clip_val=1.0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(SequenceClassifier(network, data.num_labels, task, lr=args.fine_tuning_lr), data)
        return {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}

    return once(args.out, f"{name}_{task}_{seed}", start)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with glue, squad and gsm8k")
    parser.add_argument("--teacher", required=True, help="folder or name of the teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/minilm_finetune"))
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=24, help="relation heads")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="bf16-mixed", help="of the distillation")
    parser.add_argument("--samples", type=int, default=4000, help="rows of SST-2")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--fine-tuning-lr", type=float, default=3e-4)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {vars(args)}")
    distil(args)
    print("| student | " + " | ".join(f"{task} {GLUE_TASKS[task].metrics[-1]}" for task in TASKS) + " |\n|---|---|---|")
    for name in ("random", "distilled"):
        cells = []
        for task in TASKS:
            metric = f"val/{GLUE_TASKS[task].metrics[-1]}"
            scores = [100 * fine_tune(args, name, task, seed)[metric] for seed in range(args.seeds)]
            cells.append(spread(scores))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
