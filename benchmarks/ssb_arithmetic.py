"""SSB on generated word problems, sized for a CPU: does a small model gain by its own right and wrong answers?

    python -m benchmarks.ssb_arithmetic --out runs/ssb_arithmetic --seeds 0 1 2

For each seed a small Llama learns problems of one to three steps, half of them with hints (`ArithmeticDataModule`).
Then, on new problems of three steps, where it is weak, it goes through SSB's stages, and is compared with what
else can be done with the same answers:

- base: the model before;
- right: fine-tuned on its answers that were right (rejection sampling), as many steps as SSB;
- texts: fine-tuned on SSB's own texts, `kd_weight=0, ce_weight=1`;
- ssb: SSBDistill, the adapter-off teacher;
- ssb_ce: the same with the cross entropy of its texts beside, ``ce_weight=1``.

All by LoRA from the base with one recipe. Numbers are the share of right greedy answers to held-out problems, in
percent. Every finished run leaves a file in ``out`` and is not run again.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything

from benchmarks.runs import fit, once, print_systems, spread, trainer
from lit_kd.datamodules import ArithmeticDataModule, HintsDataModule, RightAnswersDataModule, SSBDataModule
from lit_kd.language.arithmetic import write_start
from lit_kd.language.engines import Sampling
from lit_kd.language.hints import COMPACT_HINTS
from lit_kd.language.records import read_records
from lit_kd.methods import LanguageModel, Refinement, Rollouts, SSBDistill
from lit_kd.models import causal_lm

ALL_LEVELS, LEVELS = (1, 2, 3), (3,)  # of the base's problems, and of those that SSB and the test are about
LENGTH = 96  # tokens of an answer
LORA = {"r": 32, "lora_alpha": 32, "target_modules": "all-linear"}
SYSTEMS = ("base", "right", "texts", "ssb", "ssb_ce")


def problems(args: argparse.Namespace, tokenizer: Path, **settings: Any) -> ArithmeticDataModule:
    """Those that nothing was trained on."""
    return ArithmeticDataModule(
        tokenizer=str(tokenizer), levels=LEVELS, test_samples=args.test, eval_batch_size=128, **settings
    )


def run(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Accuracy of the systems, in percent, and what the stages found."""
    out = args.out / f"seed{seed}"
    start, base = out / "start", out / "base"

    def learn() -> dict[str, float]:
        seed_everything(seed)
        write_start(start)
        data = ArithmeticDataModule(
            tokenizer=str(start), levels=ALL_LEVELS, samples=args.samples, hint_fraction=0.5, batch_size=32, seed=seed
        )
        adamw = partial(torch.optim.AdamW, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
        module = LanguageModel(causal_lm(str(start), init="random"), warmup=0.05, optimizer=adamw)
        return fit(module, data, args.base_epochs, base)

    once(out, "learn", learn)

    def answer() -> dict[str, float]:
        sampling = Sampling(temperature=1.0, samples=args.answers, max_new_tokens=LENGTH, seed=seed)
        module = Rollouts(str(out / "rollouts"), sampling, network=causal_lm(str(base)), answer_batch_size=128)
        trainer().predict(module, problems(args, base, samples=args.problems, predict_on="train", seed=100 + seed))
        rows = read_records(out / "rollouts")
        right = sum(answer["right"] for row in rows for answer in row["answers"])
        return {"right": right / len(rows) / args.answers, "problems": len(rows)}

    once(out, "answer", answer)

    def refine() -> dict[str, float]:
        sampling = Sampling(temperature=0.2, max_new_tokens=LENGTH, seed=seed)
        module = Refinement(str(out / "refined"), sampling, network=causal_lm(str(base)), answer_batch_size=128)
        hints = HintsDataModule(
            rollouts=str(out / "rollouts"), system_prompt=None, template=COMPACT_HINTS, eval_batch_size=128, seed=seed
        )
        trainer().predict(module, hints)
        rows = read_records(out / "refined")
        return {"pairs": len(rows), "accepted": sum(row["reason"] is None for row in rows)}

    pairs = once(out, "refine", refine)["accepted"]
    ours: dict[str, Any] = {"tokenizer": str(base), "batch_size": 16, "seed": seed}
    numbers = {}
    for name in SYSTEMS:
        folder = base if name == "base" else out / name

        def distil(name: str = name, folder: Path = folder) -> dict[str, float]:
            seed_everything(seed)
            network = causal_lm(str(base), lora=LORA)
            if name == "right":
                data: Any = RightAnswersDataModule(rollouts=str(out / "rollouts"), samples_per_epoch=int(pairs), **ours)
                return fit(LanguageModel(network, lr=args.lr), data, args.epochs, folder)
            data = SSBDataModule(refined=str(out / "refined"), **ours)
            weights = {"texts": (0.0, 1.0), "ssb": (1.0, 0.0), "ssb_ce": (1.0, 1.0)}[name]
            return fit(
                SSBDistill(network, kd_weight=weights[0], ce_weight=weights[1], lr=args.lr), data, args.epochs, folder
            )

        if name != "base":
            once(out, name, distil)

        def test(folder: Path = folder) -> dict[str, float]:
            greedy = Sampling(temperature=0.0, max_new_tokens=LENGTH)
            module = LanguageModel(causal_lm(str(folder)), sampling=greedy, answer_batch_size=128)
            (found,) = trainer().test(module, problems(args, folder), verbose=False)
            return {key.removeprefix("test/"): value for key, value in found.items()}

        numbers[name] = 100 * once(out, f"test_{name}", test)["pass@1"]
    return numbers


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ssb_arithmetic"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=40000, help="problems that the base learns from")
    parser.add_argument("--base-epochs", type=int, default=2)
    parser.add_argument("--problems", type=int, default=3000, help="problems of SSB")
    parser.add_argument("--answers", type=int, default=8, help="to each of them")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--test", type=int, default=1000, help="held-out problems")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {vars(args)}")
    found = [run(args, seed) for seed in args.seeds]
    print_systems(SYSTEMS, found)
    for name in SYSTEMS[1:]:
        print(f"gain of {name} over base: {spread([numbers[name] - numbers['base'] for numbers in found])} points")


if __name__ == "__main__":
    main()
