"""Steps of the methods for language models, and the same written in plain PyTorch, and writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.steps import BARE, OURS, Batch, Loss, Size, Variant, calls, constant, pair
from benchmarks.text_steps import amount, problems
from lit_kd.datamodules import ArithmeticDataModule, ChatDataModule, SSBDataModule
from lit_kd.language.arithmetic import write_start
from lit_kd.language.chat import Example, collate, encode_completion, encode_prompt, end_tokens, lm_tokenizer
from lit_kd.language.engines import Sampling, TransformersEngine
from lit_kd.language.records import Records
from lit_kd.losses import ForwardKL
from lit_kd.methods import LanguageModel, MGSRDistill, OnPolicy, Replay, SSBDistill, SyntheticDistill
from lit_kd.methods.sources import Moment
from lit_kd.methods.writing import token_rows
from lit_kd.models import causal_lm

BATCH = 8
WRITTEN = Sampling(32, temperature=0.0)  # greedy: the bare loop has other random numbers


def start(size: Size) -> str:
    """A tokenizer and the configuration of a Llama; the folder."""
    return write_start(size.folder, *size.pick((64, 2, 4), (256, 4, 8)))


def network(size: Size, layers: int | None = None, **settings: Any) -> Any:
    """A Llama with random weights."""
    config = {"vocab_size": size.pick(1024, 8192), **({} if layers is None else {"num_hidden_layers": layers})}
    return causal_lm(str(size.folder), init="random", config=config, **settings)


def arithmetic(size: Size) -> ArithmeticDataModule:
    """Word problems with solutions."""
    return ArithmeticDataModule(tokenizer=start(size), samples=400, levels=(3, 4, 5), **amount(size, BATCH))


def logits(network: Any, batch: Batch, prefix: str = "", **inputs: Tensor) -> Tensor:
    """Whole logits, of which those that predict completion tokens are taken, (N, V)."""
    inputs = {"input_ids": batch[f"{prefix}input_ids"], "attention_mask": batch[f"{prefix}attention_mask"], **inputs}
    return network(**inputs, use_cache=False).logits[:, :-1][batch[f"{prefix}completion_mask"][:, 1:]]


def labels(batch: Batch) -> Tensor:
    """The completion tokens, (N,)."""
    return batch["input_ids"][:, 1:][batch["completion_mask"][:, 1:]]


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(teacher || student)``, mean over tokens."""
    log_q, log_p = (z.div(temperature).log_softmax(1) for z in (student, teacher))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def language_model(size: Size) -> dict[str, Variant]:
    """Cross-entropy of the completions."""

    def loss(module: LanguageModel) -> Loss:
        return lambda batch: F.cross_entropy(logits(module.network, batch), labels(batch))

    return pair(size, lambda: LanguageModel(network(size), lr_scheduler=constant), arithmetic(size), loss)


def ssb(size: Size) -> dict[str, Variant]:
    """An adapter, and as teacher the network without it behind another prompt."""
    folder, path = size.folder / "refined", start(size)
    tokenizer = lm_tokenizer(path)
    records = Records(folder, {"kind": "number"})
    for index, one in enumerate(problems(200)):
        chat = [{"role": "user", "content": one.question}]
        hints = [{"role": "user", "content": f"{one.question} {one.solution}"}]
        row = {"student_prompt": chat, "prompt": hints, "ids": encode_completion(tokenizer, str(one.solution))}
        records.append([{"index": index, **row, "reason": None}])
    data = SSBDataModule(refined=str(folder), tokenizer=path, **amount(size, 4))

    def make() -> SSBDistill:
        lora = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"}
        return SSBDistill(network(size, lora=lora), lr_scheduler=constant)

    def loss(module: SSBDistill) -> Loss:
        def of(batch: Batch) -> Tensor:
            with torch.no_grad(), module.network.disable_adapter():
                target = logits(module.network, batch, "teacher_")
            return kl(logits(module.network, batch), target, temperature=2.0)

        return of

    return pair(size, make, data, loss)


def synthetic(size: Size) -> dict[str, Variant]:
    """Fine-tuning on chats, several in a row."""
    file, path = size.folder / "chats.jsonl", start(size)
    rows = []
    for one in problems(400):
        says = {"system": "Answer.", "user": one.question, "assistant": str(one.solution)}
        rows.append({"messages": [{"role": role, "content": content} for role, content in says.items()]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = amount(size, 4) | {"packing": True, "max_length": 384}
    data = ChatDataModule(chats=str(file), tokenizer=path, **settings)

    def loss(module: SyntheticDistill) -> Loss:
        def of(batch: Batch) -> Tensor:
            text = (batch["position_ids"] == 0).cumsum(1)
            apart = (text[:, :, None] == text[:, None]).tril()[:, None]  # no token sees another chat
            found = logits(module.network, batch, attention_mask=apart, position_ids=batch["position_ids"])
            return F.cross_entropy(found, labels(batch))

        return of

    return pair(size, lambda: SyntheticDistill(network(size), lr_scheduler=constant), data, loss)


def mgsr(size: Size) -> dict[str, Variant]:
    """DAC-KL and cross-entropy on the data."""

    def make() -> MGSRDistill:
        return MGSRDistill(network(size, 1), network(size), lr_scheduler=constant)

    def loss(module: MGSRDistill) -> Loss:
        def of(batch: Batch) -> Tensor:
            with torch.no_grad():
                target = logits(module.teacher.module.network, batch)
            own = logits(module.network, batch)
            return module.measure(own, target, 1.0).loss.mean() + F.cross_entropy(own, labels(batch))

        return of

    return pair(size, make, arithmetic(size), loss)


class Replayed(Replay):
    """Writes until the buffer is full, which is in the first step here, then replays."""

    def __init__(self) -> None:
        super().__init__(capacity=BATCH, initial_phi=1.0, sampling=WRITTEN)

    def rho(self, moment: Moment) -> float:
        """Nothing new is written."""
        return 0.0


def written(size: Size) -> dict[str, Variant]:
    """On what the student writes in each step."""
    return on_policy(size, lambda: OnPolicy(sampling=WRITTEN))


def replayed(size: Size) -> dict[str, Variant]:
    """On what it wrote in the first step."""
    return on_policy(size, Replayed)


def on_policy(size: Size, source: Callable[[], OnPolicy]) -> dict[str, Variant]:
    """The forward KL on the student's own completions."""
    data = arithmetic(size)

    def make() -> MGSRDistill:
        settings: Any = {"divergence": ForwardKL(), "ce_weight": 0.0, "lr_scheduler": constant}
        return MGSRDistill(network(size, 1), network(size), source=source(), **settings)

    def loss(module: MGSRDistill) -> Loss:
        tokenizer, teacher = lm_tokenizer(module.network.tokenizer_path), module.teacher.module.network
        buffer: list[Batch] = []

        def of(batch: Batch) -> Tensor:
            if not (buffer and isinstance(module.source, Replay)):
                prompts = [list(row.prompt) for row in token_rows(batch)]
                texts = write(module.network, tokenizer, prompts)
                examples = [Example(*row) for row in zip(prompts, texts, strict=True)]
                buffer[:] = [{name: x.to(module.device) for name, x in collate(examples, 0).items()}]
            with torch.no_grad():
                target = logits(teacher, buffer[0])
            return kl(logits(module.network, buffer[0]), target)

        return of

    return pair(size, make, data, loss)


@torch.no_grad()
def write(network: Any, tokenizer: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Completions by transformers' own greedy search, each with its end."""
    batch = collate([Example(prompt, []) for prompt in prompts], 0, side="left")
    inputs = {name: batch[name].to(network.device) for name in ("input_ids", "attention_mask")}
    ends, training = list(end_tokens(tokenizer, network)), network.training
    limit: Any = {"max_new_tokens": WRITTEN.max_new_tokens, "eos_token_id": ends, "pad_token_id": 0}
    found = network.eval().generate(**inputs, **limit, do_sample=False)
    network.train(training)
    rows = found[:, batch["input_ids"].shape[1] :].tolist()
    lengths = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def writing(size: Size) -> dict[str, Variant]:
    """16 greedy completions of 32 tokens, as `Rollouts`, `Refinement` and `Synthesis` write them."""
    path = start(size)
    torch.manual_seed(0)
    student, tokenizer = network(size).eval().to(size.device), lm_tokenizer(path)
    chats: Any = [[{"role": "user", "content": one.question}] for one in problems(16)]
    encoded = [encode_prompt(tokenizer, chat) for chat in chats]
    engine = TransformersEngine(student, tokenizer, 16)

    def ours() -> Tensor:
        return torch.tensor([token for (one,) in engine.generate(chats, WRITTEN) for token in one.ids or ()])

    def bare() -> Tensor:
        return torch.tensor([token for row in write(student, tokenizer, encoded) for token in row])

    return calls(size, {BARE: bare, OURS: ours})
