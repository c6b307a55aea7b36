"""Tiny encoders of Hugging Face and text data modules with the contract of ours: tokens, labels, index."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from lit_kd.datamodules.loading import RankSampler, ResumableLoader, ShardSampler, StreamSampler, build_loader
from lit_kd.language.glue import glue_task
from lit_kd.language.squad import SquadExample, SquadFeature

VOCABULARY = 40
PAD, CLS, SEP, MARK = 0, 1, 2, 3  # MARK + y stands in a sequence of class y
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
adamw = partial(torch.optim.AdamW, lr=3e-3)


def constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)


def config(width: int = 16, dropout: float = 0.0, vocab_size: int = VOCABULARY, **settings: Any) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
        **settings,
    )


def classifier(num_labels: int = 2, seed: int = 0, **settings: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(config(num_labels=num_labels, **settings))


def distilbert(num_labels: int = 2) -> DistilBertForSequenceClassification:
    torch.manual_seed(0)
    settings = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32}
    return DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=VOCABULARY, num_labels=num_labels, **settings)
    )


def reader(seed: int = 0, **settings: Any) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    return BertForQuestionAnswering(config(**settings))


class Tokens(Dataset[dict[str, Tensor]]):
    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, key: dict[str, Tensor]) -> dict[str, Tensor]:
        index = key["index"]
        return {**{name: values[index] for name, values in self.columns.items()}, "index": index}


def loader(columns: dict[str, Tensor], batch_size: int, train: bool) -> ResumableLoader:
    tokens = Tokens(columns)
    index = torch.arange(len(tokens))
    sampler: RankSampler = (
        StreamSampler(index, batch_size, len(tokens), seed=0) if train else ShardSampler(index, batch_size)
    )
    return build_loader(tokens, sampler, num_workers=0, seed=0, trainer=None)


class TinyGLUE(LightningDataModule):
    """Sequences whose class, or for ``stsb`` score from 0 to 5, is the marker among their words; some padded."""

    def __init__(
        self,
        task: str = "sst2",
        tokenizer: Any = None,
        root: Any = None,
        max_length: int = 128,
        batch_size: int = 8,
        seed: int = 0,
        samples: int = 64,
        eval_samples: int = 31,
    ) -> None:
        super().__init__()
        self.task, self.num_labels = task, glue_task(task).num_labels
        self.batch_size, self.samples, self.eval_samples = batch_size, samples, eval_samples

    def columns(self, samples: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        regression = self.num_labels == 1
        label = torch.randint(0, 6 if regression else self.num_labels, (samples,), generator=generator)
        ids = torch.randint(10, VOCABULARY, (samples, 8), generator=generator)
        place = torch.randint(1, 5, (samples,), generator=generator)
        ids[torch.arange(samples), place] = MARK + label
        ids[:, 0], ids[:, 6] = CLS, SEP
        ids[:, 7] = PAD
        return {
            "input_ids": ids,
            "attention_mask": (ids != PAD).long(),
            "token_type_ids": torch.zeros_like(ids),
            "labels": label.float() if regression else label,
        }

    def train_dataloader(self) -> ResumableLoader:
        return loader(self.columns(self.samples, 0), self.batch_size, train=True)

    def val_dataloader(self) -> Any:
        matched = loader(self.columns(self.eval_samples, 1), self.batch_size, train=False)
        if self.task != "mnli":
            return matched
        return [matched, loader(self.columns(self.eval_samples + 4, 2), self.batch_size, train=False)]

    def test_dataloader(self) -> Any:
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        return loader(self.columns(self.eval_samples, 1), self.batch_size, train=False)


WORDS = [f"w{number}" for number in range(VOCABULARY)]
QUESTION = 2  # tokens, between CLS and SEP
WINDOW = 6  # context tokens of a window; two windows a question, which overlap by 2


class TinySQuAD(LightningDataModule):
    """Texts of ten words in two windows; the answer is the word MARK and the one after it; a third has none."""

    def __init__(self, batch_size: int = 8, questions: int = 48, unanswerable: bool = True) -> None:
        super().__init__()
        self.batch_size, self.unanswerable = batch_size, unanswerable
        self.examples: dict[str, list[SquadExample]] = {}
        self.features: dict[str, list[SquadFeature]] = {}
        self._columns: dict[str, dict[str, Tensor]] = {}
        for split, number, seed in (("train", questions, 0), ("val", 21, 1), ("test", 21, 1)):
            self._build(split, number, seed)

    def _build(self, split: str, questions: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        examples, features, rows, starts, ends = [], [], [], [], []
        for number in range(questions):
            ids = torch.randint(10, VOCABULARY, (10,), generator=generator).tolist()
            at = int(torch.randint(0, 9, (1,), generator=generator))
            has = not self.unanswerable or number % 3 > 0
            if has:
                ids[at] = MARK
            words = [WORDS[token] for token in ids]
            begins = [len(" ".join(words[:i])) + (i > 0) for i in range(10)]
            gold = " ".join(words[at : at + 2])
            answers = ((gold,), (begins[at],)) if has else ((), ())
            examples.append(SquadExample(f"{split}{number}", "?", " ".join(words), *answers))
            for first in (0, 4):
                span = range(first, first + WINDOW)
                offsets = [(begins[i], begins[i] + len(words[i])) for i in span]
                head = QUESTION + 2
                features.append(SquadFeature(number, (*[None] * head, *offsets, None), 0))
                rows.append([CLS, *range(4, 4 + QUESTION), SEP, *[ids[i] for i in span], SEP])
                inside = has and at in span and at + 1 in span
                starts.append(head + at - first if inside else 0)
                ends.append(head + at + 1 - first if inside else 0)
        self.examples[split], self.features[split] = examples, features
        tokens = torch.tensor(rows)
        columns = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        columns["token_type_ids"] = (torch.arange(tokens.shape[1]) > QUESTION + 1).long().expand_as(tokens)
        if split == "train":
            columns |= {"start_positions": torch.tensor(starts), "end_positions": torch.tensor(ends)}
        self._columns[split] = columns

    def train_dataloader(self) -> ResumableLoader:
        return loader(self._columns["train"], self.batch_size, train=True)

    def val_dataloader(self) -> ResumableLoader:
        return loader(self._columns["val"], self.batch_size, train=False)

    def test_dataloader(self) -> ResumableLoader:
        return loader(self._columns["test"], self.batch_size, train=False)

    def predict_dataloader(self) -> ResumableLoader:
        return self.test_dataloader()


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of what is saved."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
