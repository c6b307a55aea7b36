"""Steps of the methods for text encoders, and the same written in plain PyTorch."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

from benchmarks.steps import BARE, OURS, Batch, Loss, Size, Variant, constant, in_bare_loop, pair, through_trainer
from lit_kd.datamodules import GLUEDataModule, SQuADDataModule, TextCorpusDataModule
from lit_kd.language.arithmetic import make_arithmetic
from lit_kd.methods import MiniLMDistill, QuestionAnswering, SequenceClassifier

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def problems(count: int) -> list[Any]:
    """Generated word problems: the texts."""
    return [make_arithmetic(0, "train", index, (3, 4, 5)).problem() for index in range(count)]


def tokenizer(size: Size) -> str:
    """A WordPiece tokenizer of these texts; its folder."""
    raw = BertWordPieceTokenizer()
    raw.train_from_iterator([one.question for one in problems(500)], vocab_size=1000, show_progress=False)
    raw.save_model(str(size.folder))
    BertTokenizer(str(size.folder / "vocab.txt"), model_max_length=512).save_pretrained(size.folder)
    return str(size.folder)


def amount(size: Size, batch_size: int) -> dict[str, Any]:
    """As many batches as a round has."""
    return {"batch_size": batch_size, "samples_per_epoch": batch_size * size.batches}


def shapes(size: Size) -> tuple[tuple[int, int], tuple[int, int]]:
    """Layers and width of student and teacher."""
    return size.pick(((1, 96), (2, 192)), ((4, 384), (6, 768)))


def network(size: Size, kind: Any, layers: int, width: int, heads: int = 12, attention: str = "sdpa") -> Any:
    """BERT with random weights, without dropout: its draws would differ between two implementations of attention."""
    config = BertConfig(
        vocab_size=size.pick(1000, 30522),
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(layers)
    return kind._from_config(config, attn_implementation=attention)


def known(batch: Batch) -> dict[str, Tensor]:
    """What a network reads."""
    return {name: batch[name] for name in INPUTS}


# MiniLM


def minilm(size: Size, relations: Any) -> dict[str, Variant]:
    """The bare loop runs whole networks with eager attention and ``output_attentions=True``."""
    file = size.folder / "corpus.txt"
    file.write_text("\n".join(one.question for one in problems(400)))
    settings = amount(size, size.pick(4, 1)) | {"max_length": size.pick(64, 512)}
    data = TextCorpusDataModule(tokenizer=tokenizer(size), files=str(file), **settings)

    def make(attention: str) -> MiniLMDistill:
        heads = size.pick(6, 12)
        teacher = network(size, BertModel, *size.pick((3, 192), (12, 768)), heads, attention)
        student = network(size, BertModel, *size.pick((2, 96), (6, 384)), heads, attention)
        return MiniLMDistill(
            student,
            teacher,
            relations=relations,
            heads=None if relations == "minilm" else size.pick(24, 48),
            lr_scheduler=constant,
        )

    return {
        BARE: in_bare_loop(size, partial(make, "eager"), data, whole_networks),
        OURS: through_trainer(size, partial(make, "sdpa"), data),
    }


def whole_networks(module: MiniLMDistill) -> Loss:
    """MiniLM as one would write it first.

    v1 compares the logarithms of the last layers' attention probabilities, and V-V from hooks on the projections; v2
    compares Q-Q, K-K and V-V from hooks.
    """
    student: Any = module.network
    teacher: Any = module.teacher.module.module
    attention = ("q", "k") in module.relations
    kept: list[dict[str, Tensor]] = []
    for one in (teacher, student):
        vectors: dict[str, Tensor] = {}
        for name in ("query", "key", "value"):
            part = getattr(one.encoder.layer[-1].attention.self, name)
            part.register_forward_hook(lambda m, a, out, name=name, vectors=vectors: vectors.update({name[0]: out}))
        kept.append(vectors)

    def of(batch: Batch) -> Tensor:
        mask = batch["attention_mask"]
        with torch.no_grad():
            target = teacher(**known(batch), output_attentions=True).attentions[-1]
        output = student(**known(batch), output_attentions=True).attentions[-1]
        loss = torch.zeros((), device=mask.device)
        if attention:
            loss = kl(target.clamp(min=1e-30).log(), output.clamp(min=1e-30).log(), mask)
        for x in "v" if attention else "qkv":
            target, output = (relation(vectors[x], mask, module.heads) for vectors in kept)
            loss = loss + kl(target, output, mask)
        return loss

    return of


def relation(x: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Log of a self-attention relation of a vector with itself, (B, A, S, S)."""
    x = x.unflatten(2, (heads, -1)).transpose(1, 2)
    scores = x @ x.mT / x.shape[3] ** 0.5
    return scores.masked_fill(mask[:, None, None] == 0, torch.finfo(scores.dtype).min).log_softmax(3)


def kl(log_p: Tensor, log_r: Tensor, mask: Tensor) -> Tensor:
    """KL over keys, mean over heads and tokens, mean over texts."""
    rows = (log_p.exp() * (log_p - log_r)).sum(3).mean(1) * mask  # (B, S)
    return (rows.sum(1) / mask.sum(1)).mean()


# Fine-tuning


def sequence_classifier(size: Size) -> dict[str, Variant]:
    """Two classes, with a teacher."""
    lines = ["sentence\tlabel", *(f"{one.question}\t{number % 2}" for number, one in enumerate(problems(400)))]
    folder = size.folder / "SST-2"
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("\n".join(lines))
    data = GLUEDataModule(task="sst2", tokenizer=tokenizer(size), root=size.folder, **amount(size, size.pick(8, 16)))

    def make() -> SequenceClassifier:
        student, teacher = (network(size, BertForSequenceClassification, *shape) for shape in shapes(size))
        return SequenceClassifier(student, 2, teacher=teacher, lr_scheduler=constant)

    def loss(module: SequenceClassifier) -> Loss:
        assert module.teacher is not None
        teacher = module.teacher.module

        def of(batch: Batch) -> Tensor:
            with torch.no_grad():
                target = (teacher(**known(batch)).logits / 2).softmax(1)
            logits = module.network(**known(batch)).logits
            soft = 4 * F.kl_div((logits / 2).log_softmax(1), target, reduction="batchmean")
            return 0.5 * F.cross_entropy(logits, batch["labels"]) + 0.5 * soft

        return of

    return pair(size, make, data, loss)


def question_answering(size: Size) -> dict[str, Variant]:
    """Spans of version 2.0, without a teacher."""
    paragraphs = []
    for number, one in enumerate(problems(400)):
        context = f"{one.question} {one.solution}"
        answer = {"text": context.split()[3], "answer_start": context.index(context.split()[3])}
        question = {"id": str(number), "question": "What?", "answers": [answer], "is_impossible": False}
        paragraphs.append({"context": context, "qas": [question]})
    file = size.folder / "squad.json"
    file.write_text(json.dumps({"version": "v2.0", "data": [{"title": "", "paragraphs": paragraphs}]}))
    settings = amount(size, size.pick(8, 16)) | {"max_length": 192, "stride": 64}
    data = SQuADDataModule(tokenizer=tokenizer(size), train_file=file, eval_file=file, **settings)

    def make() -> QuestionAnswering:
        return QuestionAnswering(network(size, BertForQuestionAnswering, *shapes(size)[0]), lr_scheduler=constant)

    def loss(module: QuestionAnswering) -> Loss:
        def of(batch: Batch) -> Tensor:
            output: Any = module.network(**known(batch))
            ends = [(output.start_logits, "start_positions"), (output.end_logits, "end_positions")]
            return torch.stack([F.cross_entropy(logits, batch[name]) for logits, name in ends]).mean()

        return of

    return pair(size, make, data, loss)
