"""Text data modules: GLUE, SQuAD, corpora; on tiny files in the real format, and on real ones where they are."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from text_files import LABELS, TSV, squad, tokenizer
from text_recorder import Recorder, corpus, indices, straight_and_resumed, words
from torch import Tensor
from toy import quiet_trainer
from transformers import AutoTokenizer, BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from lit_kd.callbacks import AnswersWriter
from lit_kd.datamodules import GLUEDataModule, SQuADDataModule, TextCorpusDataModule, TextDataModule
from lit_kd.datamodules.loading import BucketSampler, StreamSampler
from lit_kd.language.glue import GLUE_TASKS
from lit_kd.methods import QuestionAnswering, SequenceClassifier

Ranks = Callable[[int, int], None]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return tokenizer(tmp_path / "tokenizer")


def glue_files(root: Path, task: str, rows: str | None = None) -> Path:
    folder = root / GLUE_TASKS[task].folder
    folder.mkdir(parents=True)
    for name in ("train", *(f"dev{part}" for part in GLUE_TASKS[task].parts)):
        (folder / f"{name}.tsv").write_text(rows or TSV[task])
    lines = [line.split("\t") for line in TSV[task].splitlines()]
    header = lines[0] if task != "cola" else ["index", "sentence"]
    body = lines[1:] if task != "cola" else [[str(i), line[3]] for i, line in enumerate(lines)]
    keep = [i for i, name in enumerate(header) if name != GLUE_TASKS[task].tsv_columns[-1] or task == "cola"]
    test = [[row[i] for i in keep] for row in (header, *body)]
    for part in GLUE_TASKS[task].parts:
        (folder / f"test{part}.tsv").write_text("\n".join("\t".join(row) for row in test) + "\n")
    return root


def rte(root: Path, count: int, entailed: int) -> Path:
    """Pairs of different lengths, the first ones entailed."""
    rows = [f"{i}\t{text}\tb\t{'' if i < entailed else 'not_'}entailment" for i, text in enumerate(words(count))]
    return glue_files(root, "rte", "index\tsentence1\tsentence2\tlabel\n" + "\n".join(rows) + "\n")


def everything(loader: Any) -> dict[int, dict[str, Tensor]]:
    """Samples by index, without padding."""
    samples: dict[int, dict[str, Tensor]] = {}
    for batch in loader:
        for row, index in enumerate(batch["index"].tolist()):
            assert index not in samples
            real = batch["attention_mask"][row].bool()
            samples[index] = {k: v[row][real] if v.ndim == 2 else v[row] for k, v in batch.items() if k != "index"}
    return samples


def ready(data: TextDataModule, *stages: str) -> Any:
    for stage in stages or ("fit",):
        data.setup(stage)
    return data


# GLUE


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_glue_reads_every_task(task: str, path: str, tmp_path: Path) -> None:
    data = GLUEDataModule(task=task, tokenizer=path, root=glue_files(tmp_path, task), batch_size=2)
    assert data.num_labels == GLUE_TASKS[task].num_labels and data.task == task
    (batch,) = ready(data).train_dataloader()
    order = batch["index"].argsort()
    assert batch["labels"][order].tolist() == LABELS[task]
    assert batch["labels"].dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert batch["index"].dtype == torch.int64
    assert batch.keys() == {"input_ids", "attention_mask", "token_type_ids", "labels", "index"}
    texts = AutoTokenizer.from_pretrained(path).batch_decode(batch["input_ids"][order])
    assert texts[1].count("[SEP]") == (1 if task in ("cola", "sst2") else 2)
    assert len(data.val_dataloader()) == (2 if task == "mnli" else 1)
    ready(data, "test", "predict")
    assert data.sets["test"] is data._sets("val")
    for loader in data.predict_dataloader():
        assert "labels" not in next(iter(loader))
    assert everything(data.test_dataloader()[0]).keys() == {0, 1}


def test_mnli_without_the_mismatched_file(path: str, tmp_path: Path) -> None:
    root = glue_files(tmp_path, "mnli")
    (root / "MNLI" / "dev_mismatched.tsv").unlink()
    assert len(ready(GLUEDataModule(task="mnli", tokenizer=path, root=root)).val_dataloader()) == 1


def test_microsofts_test_of_mrpc(path: str, tmp_path: Path) -> None:
    root = glue_files(tmp_path, "mrpc")
    (root / "MRPC" / "test.tsv").rename(root / "MRPC" / "msr_paraphrase_test.txt")
    data = ready(GLUEDataModule(task="mrpc", tokenizer=path, root=root), "predict")
    assert len(data.sets["predict"][0]) == 2


def test_glue_by_datasets(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, config: str, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        features = {n: datasets.Value("string") for n in ("premise", "hypothesis")}
        label = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
        rows = {"premise": ["a", "b"], "hypothesis": [split[:8], "c"], "label": [2, -1 if "test" in split else 1]}
        return datasets.Dataset.from_dict(rows, features=datasets.Features({**features, "label": label}))

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = ready(GLUEDataModule(task="mnli", tokenizer=path, batch_size=2), "fit", "predict")
    (batch,) = data.train_dataloader()
    assert sorted(batch["labels"].tolist()) == [1, 2]
    assert len(data.val_dataloader()) == len(data.predict_dataloader()) == 2
    splits = ["train", *(f"{name}_{part}" for name in ("validation", "test") for part in ("matched", "mismatched"))]
    assert asked == [("nyu-mll/glue", "mnli", split) for split in splits]


def test_real_glue_is_served(path: str, real_data: Path) -> None:
    """STS-B: every pair once, its score beside it; the tests of `lit_kd.language` look at all files."""
    data = ready(GLUEDataModule(task="stsb", tokenizer=path, root=real_data / "glue", batch_size=64), "test")
    samples = everything(data.test_dataloader()[0])
    lines = [line.split("\t") for line in (real_data / "glue/STS-B/dev.tsv").read_text().split("\n")[1:] if line]
    assert samples.keys() == set(range(len(lines))) == set(range(1500))
    own = AutoTokenizer.from_pretrained(path)
    for i in (0, 700, 1499):
        assert samples[i]["labels"] == torch.tensor(float(lines[i][9]))
        assert samples[i]["input_ids"].tolist() == own(*lines[i][7:9], truncation=True, max_length=128)["input_ids"]


# Subsets


def test_shares_of_classes_are_kept(path: str, tmp_path: Path) -> None:
    root = rte(tmp_path, 40, 30)
    settings: dict[str, Any] = {"task": "rte", "tokenizer": path, "root": root, "val_fraction": 0.2}
    chosen = []
    for change in ({}, {"train_fraction": 0.5}, {"train_samples": 16}, {"train_samples": 4}):
        data = ready(GLUEDataModule(**settings, **change))
        (train,), (val,) = data.sets["train"], data.sets["val"]
        assert train.targets["labels"][val.index].bincount().tolist() == [6, 2]
        assert not set(train.index.tolist()) & set(val.index.tolist())
        chosen.append(set(train.index.tolist()))
        assert sum(i < 30 for i in chosen[-1]) == 3 * len(chosen[-1]) // 4
        assert indices(data.val_dataloader()[0]) != [] and set(indices(data.train_dataloader())) <= chosen[-1]
    assert [len(c) for c in chosen] == [32, 16, 16, 4] and chosen[3] < chosen[2] == chosen[1] < chosen[0]
    assert ready(GLUEDataModule(**settings), "validate").sets["val"][0].index.equal(val.index)
    ready(data, "test")
    assert len(data.sets["test"][0].index) == 40  # the dev set, whatever is held out


def test_samples_per_epoch(path: str, tmp_path: Path) -> None:
    root = rte(tmp_path, 10, 5)
    data = ready(GLUEDataModule(task="rte", tokenizer=path, root=root, batch_size=4, samples_per_epoch=18))
    loader = data.train_dataloader()
    assert len(loader) == 5 and sorted(indices(loader)) == sorted([*range(10), *range(10)])


# Order


def test_buckets_hold_the_draws_of_the_stream() -> None:
    lengths = torch.randint(1, 100, (1000,), generator=torch.Generator().manual_seed(0))
    samplers = [StreamSampler(torch.arange(1000), 8, 1000, 3), BucketSampler(torch.arange(1000), 8, 1000, 3, lengths)]
    for epoch in (0, 1):
        drawn = []
        for sampler in samplers:
            sampler.set_epoch(epoch)
            drawn.append(list(sampler))
        assert len(drawn[0]) == len(drawn[1]) == len(samplers[1])
        pairs = [[torch.stack([b["visit"], b["index"]], 1) for b in one] for one in drawn]
        assert sorted(torch.cat(pairs[0]).tolist()) == sorted(torch.cat(pairs[1]).tolist())
        padded = [sum(int(lengths[b["index"]].max()) * 8 for b in one) for one in drawn]
        assert padded[1] < 0.7 * padded[0]
        means = torch.stack([lengths[b["index"]].float().mean() for b in drawn[1]])
        assert not means.equal(means.sort().values)  # batches of similar lengths, in no order
    for start in (0, 1, 49, 50, 51, 124):
        samplers[1].start = start
        assert all(torch.equal(a["index"], b["index"]) for a, b in zip(samplers[1], drawn[1][start:], strict=True))


def test_each_text_comes_once_a_pass(path: str, tmp_path: Path) -> None:
    """11 texts in four epochs of three batches of 4: four passes, and four texts of the fifth."""
    data = ready(GLUEDataModule(task="rte", tokenizer=path, root=rte(tmp_path, 11, 5), batch_size=4))
    loader = data.train_dataloader()
    drawn: list[int] = []
    for epoch in range(4):
        loader.sampler.set_epoch(epoch)
        drawn += indices(loader)
    assert len(drawn) == 48 and sorted(torch.tensor(drawn).bincount().tolist()) == [4] * 7 + [5] * 4


def test_ranks_share_the_batches_of_one(ranks: Ranks) -> None:
    lengths = torch.arange(64) % 7
    whole = list(BucketSampler(torch.arange(64), 8, 64, 0, lengths))
    parts = []
    for rank in range(2):
        ranks(rank, 2)
        parts.append(list(BucketSampler(torch.arange(64), 4, 64, 0, lengths)))
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(batch["index"], torch.stack([share["index"] for share in shares], 1).flatten())
        assert abs(int(lengths[shares[0]["index"]].max() - lengths[shares[1]["index"]].max())) <= 1


def test_evaluation_is_of_similar_lengths_and_prediction_by_file(path: str, tmp_path: Path) -> None:
    root = rte(tmp_path, 20, 10)
    (root / "RTE" / "test.tsv").write_text("index\tsentence1\tsentence2\n" + "".join(f"{i}\t{t}\tb\n" for i, t in enumerate(words(20))))  # fmt: skip  # noqa: E501
    data = ready(GLUEDataModule(task="rte", tokenizer=path, root=root, eval_batch_size=6), "test", "predict")
    lengths = [batch["attention_mask"].sum(1) for batch in data.test_dataloader()[0]]
    by_length = sorted(lengths, key=lambda of_batch: of_batch.sum().item())
    assert torch.cat(by_length).equal(torch.cat(lengths).sort().values)
    assert sorted(indices(data.test_dataloader()[0])) == indices(data.predict_dataloader()[0]) == list(range(20))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_the_tokenizers(side: str, tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t", padding_side=side)
    root = glue_files(tmp_path, "sst2")
    data = ready(GLUEDataModule(task="sst2", tokenizer=path, root=root, pad_to_multiple_of=8), "test")
    (batch,) = data.test_dataloader()[0]
    expected = AutoTokenizer.from_pretrained(path)(["bad film", "good film"], padding=True, pad_to_multiple_of=8)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert batch[name].tolist() == expected[name], name


# Through the trainer


@pytest.mark.parametrize(("stop_at", "num_workers"), [(2, 0), (5, 0), (6, 0), (5, 2)])
def test_a_resumed_run_equals_a_straight_one(stop_at: int, num_workers: int, path: str, tmp_path: Path) -> None:
    """Four steps an epoch: in its middle, in the second, and after one that an odd pass ends in."""
    root = rte(tmp_path, 15, 7)

    def build() -> GLUEDataModule:
        return GLUEDataModule(task="rte", tokenizer=path, root=root, batch_size=4, num_workers=num_workers)

    straight, first, rest = straight_and_resumed(build, tmp_path, stop_at, max_epochs=3)
    assert len(straight.seen) == 12 and len(first.seen) == stop_at
    assert first.seen + rest.seen == straight.seen
    assert torch.equal(rest.weight, straight.weight)


def test_every_stage(path: str, tmp_path: Path) -> None:
    data = GLUEDataModule(task="mnli", tokenizer=path, root=glue_files(tmp_path, "mnli"), eval_batch_size=1)
    trainer, module = quiet_trainer(max_epochs=1, num_sanity_val_steps=0), Recorder()
    trainer.fit(module, data)
    assert {i: sorted(r for index, _ in seen for r in index) for i, seen in module.evaluated.items()} == {
        0: [0, 1],
        1: [0, 1],
    }
    trainer.test(module, data, verbose=False)
    found = trainer.predict(module, data)
    assert [[int(index) for index in loader] for loader in found] == [[0, 1], [0, 1]]  # type: ignore[union-attr]


def test_checkpoints_hold_plain_arguments(path: str, tmp_path: Path) -> None:
    trainer = quiet_trainer(max_epochs=1, enable_checkpointing=True, default_root_dir=tmp_path)
    root = glue_files(tmp_path, "rte")
    trainer.fit(Recorder(), GLUEDataModule(task="rte", tokenizer=path, root=root, max_length=9, train_samples=2))
    file = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    loaded = GLUEDataModule.load_from_checkpoint(file, weights_only=True)
    assert (loaded.task, loaded.root, loaded.max_length, loaded.train_samples) == ("rte", str(root), 9, 2)


def test_pickle(path: str, tmp_path: Path) -> None:
    data = ready(GLUEDataModule(task="rte", tokenizer=path, root=glue_files(tmp_path, "rte")))
    copy = pickle.loads(pickle.dumps(data))
    assert indices(copy.train_dataloader()) == indices(data.train_dataloader())


def test_command_line(path: str) -> None:
    """The arguments of the base are seen through **settings."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(TextDataModule, "data")
    squad_words = ["--data=SQuADDataModule", "--data.version=1.1", "--data.stride=16", "--data.val_fraction=0.1"]
    corpus_words = ["--data=TextCorpusDataModule", "--data.files=[a.txt,b.txt]", "--data.packing=false"]
    glue_words = ["--data=GLUEDataModule", "--data.task=rte", "--data.root=glue"]
    known = {"version": "1.1", "val_fraction": 0.1, "packing": False, "task": "rte"}
    for given in (squad_words, corpus_words, glue_words):
        config = parser.parse_args([*given, f"--data.tokenizer={path}", "--data.batch_size=7", "--data.seed=3"])
        data = parser.instantiate_classes(config).data
        assert (data.batch_size, data.seed, data.tokenizer_path, data.hparams.batch_size) == (7, 3, path, 7)
        assert all(getattr(data, name) == value for name, value in known.items() if f"--data.{name}" in str(given))


# SQuAD


def squad_data(folder: Path, path: str, **settings: Any) -> SQuADDataModule:
    file = squad(folder / "squad.json", settings.get("version", "2.0"))
    defaults: dict[str, Any] = {"max_length": 64, "stride": 8, "max_question_length": 16}
    return SQuADDataModule(tokenizer=path, train_file=file, eval_file=file, batch_size=2, **{**defaults, **settings})


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_positions_are_the_answers(version: str, side: str, tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t", padding_side=side)
    data = ready(squad_data(tmp_path, path, version=version))
    features, examples = data.features["train"], data.examples["train"]
    assert len(features) > len(examples) == 3  # several windows
    found = set()
    for batch in data.train_dataloader():
        for row, index in enumerate(batch["index"].tolist()):
            start, end = (int(batch[f"{name}_positions"][row]) for name in ("start", "end"))
            feature = features[index]
            example = examples[feature.example]
            if start == feature.cls_index:
                assert end == start and batch["input_ids"][row, start] == 2  # [CLS], wherever the padding puts it
                continue
            text = example.context[feature.offsets[start][0] : feature.offsets[end][1]]
            assert text == example.answers[0]
            found.add(example.id)
    assert found == ({"q0", "q1", "q2"} if version == "1.1" else {"q0", "q1"})


def test_squad_evaluation_covers_every_window(path: str, tmp_path: Path) -> None:
    data = ready(squad_data(tmp_path, path))
    (loader,) = data.val_dataloader()
    samples = everything(loader)
    assert samples.keys() == set(range(len(data.features["val"])))
    assert samples[0].keys() == {"input_ids", "attention_mask", "token_type_ids"}
    ready(data, "test", "predict")
    assert data.features["test"] is data.features["val"] is data.features["predict"]
    assert indices(data.predict_dataloader()[0]) == list(range(len(samples)))


def test_squad_holds_out_whole_texts(path: str, tmp_path: Path) -> None:
    file = Path(squad(tmp_path / "squad.json", "1.1"))
    content = json.loads(file.read_text())
    (paragraph,) = content["data"][0]["paragraphs"]
    copies = [
        {"context": f"{paragraph['context']} {i}", "qas": [{**qa, "id": f"{qa['id']}_{i}"} for qa in paragraph["qas"]]}
        for i in range(5)
    ]
    content["data"][0]["paragraphs"] = copies
    file.write_text(json.dumps(content))
    settings: dict[str, Any] = {"max_length": 64, "stride": 8, "max_question_length": 16, "version": "1.1"}
    data = SQuADDataModule(tokenizer=path, train_file=file, val_fraction=0.2, train_samples=7, **settings)
    ready(data)
    train, val = data.examples["train"], data.examples["val"]
    assert (len(train), len(val)) == (7, 3) and "test" not in data.examples
    assert len({e.context for e in val}) == 1 and not {e.context for e in val} & {e.context for e in train}
    assert sorted(indices(data.val_dataloader()[0])) == list(range(len(data.features["val"])))
    assert set(indices(data.train_dataloader())) == set(range(len(data.features["train"])))
    assert {f.example for f in data.features["train"]} == set(range(7))


def test_squad_by_datasets(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, split: str) -> list[dict[str, Any]]:
        answers = (
            {"text": ["b"], "answer_start": [2]} if name == "rajpurkar/squad" else {"text": [], "answer_start": []}
        )
        return [{"id": split, "title": "", "context": "a b c", "question": " q?", "answers": answers}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    for version, place in (("1.1", 5), ("2.0", 0)):
        data = ready(SQuADDataModule(version=version, tokenizer=path, batch_size=1))  # type: ignore[arg-type]
        (batch,) = data.train_dataloader()
        assert batch["start_positions"].tolist() == batch["end_positions"].tolist() == [place]
        assert data.examples["val"][0].id == "validation"


# Corpora


def test_packed_rows_lose_nothing(path: str, tmp_path: Path) -> None:
    texts = words(11)
    data = TextCorpusDataModule(tokenizer=path, files=corpus(tmp_path, texts), max_length=12)
    samples = everything(ready(data, "test").test_dataloader()[0])
    rows = [samples[i]["input_ids"].tolist() for i in sorted(samples)]
    assert all(row[0] == 2 and row[-1] == 3 for row in rows) and all(len(row) == 12 for row in rows[:-1])
    assert list(data.documents()) == texts
    own = AutoTokenizer.from_pretrained(path)
    joined: list[int] = []
    for text in texts:
        joined += [*own(text, add_special_tokens=False)["input_ids"], 3]
    assert [token for row in rows for token in row[1:-1]] == joined[:-1]


def test_padded_rows_hold_one_document_or_a_part(path: str, tmp_path: Path) -> None:
    texts = words(11)
    file = corpus(tmp_path, texts)
    data = ready(TextCorpusDataModule(tokenizer=path, files=file, max_length=8, packing=False, val_fraction=0.2))
    (whole,), (val,) = data.sets["train"], data.sets["val"]
    own = AutoTokenizer.from_pretrained(path)
    parts = [own.decode(whole.rows.row(i)[0], skip_special_tokens=True).removeprefix("##") for i in range(len(whole))]
    assert parts == [text[begin : begin + 6] for text in texts for begin in range(0, len(text), 6)]
    assert whole.lengths.max() == 8
    held, trained = set(val.index.tolist()), set(whole.index.tolist())
    assert held and not held & trained and len(held | trained) == len(whole)
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() == {"input_ids", "attention_mask", "token_type_ids", "index"}


def test_any_set_of_datasets(path: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps({"body": f"row {i}"}) + "\n" for i in range(5)))
    settings: dict[str, Any] = {"dataset": str(tmp_path / "set"), "text_column": "body", "max_length": 16}
    data = ready(TextCorpusDataModule(tokenizer=path, cache_dir=tmp_path / "cache", **settings))
    assert list(data.documents()) == [f"row {i}" for i in range(5)]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_tokens_are_kept_by_the_contents_of_texts_and_tokenizer(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cache = corpus(tmp_path, words(30)), tmp_path / "cache"
    settings: dict[str, Any] = {"files": [file], "cache_dir": str(cache), "max_length": 12}
    expected = everything(ready(TextCorpusDataModule(tokenizer=path, files=[file], max_length=12), "test").test_dataloader()[0])  # fmt: skip  # noqa: E501
    data = TextCorpusDataModule(tokenizer=path, **settings)
    data.prepare_data()
    (first,) = cache.iterdir()
    from lit_kd.datamodules import text_corpus

    with monkeypatch.context() as patch:
        patch.setattr(text_corpus, "tokenise", lambda *_: pytest.fail("tokenised again"))
        samples = everything(ready(data, "test").test_dataloader()[0])
        ready(TextCorpusDataModule(tokenizer=path, **{**settings, "max_length": 30, "packing": False}))
    assert all(torch.equal(samples[i]["input_ids"], expected[i]["input_ids"]) for i in expected)
    corpus(tmp_path, words(31))
    ready(TextCorpusDataModule(tokenizer=path, **settings))
    ready(TextCorpusDataModule(tokenizer=tokenizer(tmp_path / "cased", do_lower_case=False), **settings))
    names = {entry.name for entry in cache.iterdir()}
    assert len(names) == 3 and first.name in names and all(name.endswith(".safetensors") for name in names)


def test_nothing_validates_unless_held_out(path: str, tmp_path: Path) -> None:
    data = ready(TextCorpusDataModule(tokenizer=path, files=corpus(tmp_path, words(30)), max_length=12))
    assert data.val_dataloader() == []


# What goes wrong


def blank(folder: Path) -> str:
    return corpus(folder, ["", "  "], "blank.txt")


def column(folder: Path) -> str:
    return corpus(folder, ['{"text": "a"}'], "rows.jsonl")


def of_rte(folder: Path, path: str, **settings: Any) -> GLUEDataModule:
    return GLUEDataModule(**{"task": "rte", "tokenizer": path, "root": rte(folder, 9, 4), **settings})


def texts(path: str, files: str | None = None, **settings: Any) -> TextCorpusDataModule:
    return TextCorpusDataModule(tokenizer=path, files=files, **settings)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda f, t: of_rte(f, t, task="cola2"), "task='cola2' is no task of GLUE: take one of cola, sst2, mrpc, qqp"),
        (lambda f, t: of_rte(f, t, train_fraction=0.5, train_samples=5), "and train_samples=5: leave one out"),
        (lambda f, t: of_rte(f, t, train_samples=10).setup("fit"), "train_samples=10 is more than the 9 texts"),
        (lambda f, t: of_rte(f, t, val_fraction=0.01).setup("fit"), "val_fraction=0.01 of 9 texts holds out none"),
        (lambda f, t: of_rte(f, str(f / "no")).setup("fit"), "no' cannot be loaded"),
        (
            lambda f, t: of_rte(f, tokenizer(f / "short", model_max_length=64)).setup("fit"),
            "max_length=128 is more than the 64 tokens that networks of tokenizer=",
        ),
        (
            lambda f, t: SQuADDataModule(tokenizer=t, train_file=squad(f / "s.json", "1.1")).setup("fit"),
            "is a file of SQuAD 1.1 but version='2.0'",
        ),
        (lambda f, t: SQuADDataModule(tokenizer=t, max_length=150).setup("fit"), "stride=128 is too large"),
        (lambda f, t: texts(t), r"files=\[\] and dataset=None: give one of them"),
        (lambda f, t: texts(t, "a", dataset="b"), r"files=\['a'\] and dataset='b': give one of them"),
        (lambda f, t: texts(t, blank(f)).setup("fit"), "There is no text in .*blank.txt: give files"),
        (lambda f, t: texts(t, blank(f), streaming=True).setup("fit"), "There is no text in .*blank.txt"),
        (lambda f, t: texts(t, column(f), text_column="body").setup("fit"), "no text in column 'body', only text"),
        (lambda f, t: texts(t, column(f), max_length=2).setup("fit"), "max_length=2 leaves no token beside 2 special"),
        (lambda f, t: texts(t, "x", streaming=True, val_fraction=0.1), "streaming=True neither counts the texts"),
        (
            lambda f, t: texts(t, "x", streaming=True, cache_dir=f),
            "streaming=True neither counts the texts nor keeps",
        ),
        (
            lambda f, t: texts(t, column(f), streaming=True).setup("test"),
            "streaming=True is for training, not",
        ),
    ],
)
def test_bad_input_says_so(build: Any, sentence: str, path: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(tmp_path, path)


def test_missing_files(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="RTE/train.tsv does not exist: root must be the folder"):
        GLUEDataModule(task="rte", tokenizer=path, root=tmp_path).setup("fit")
    with pytest.raises(FileNotFoundError, match="MNLI/test_matched.tsv does not exist"):
        GLUEDataModule(task="mnli", tokenizer=path, root=tmp_path).setup("predict")
    with pytest.raises(FileNotFoundError, match="no.txt does not exist: files must name"):
        texts(path, str(tmp_path / "no.txt")).setup("fit")


@pytest.mark.parametrize("streaming", [True, False])
def test_loaders_before_setup(streaming: bool, path: str) -> None:
    with pytest.raises(RuntimeError, match=r"The train set is not there yet: call setup\('fit'\)"):
        texts(path, "a.txt", streaming=streaming).train_dataloader()
    with pytest.raises(RuntimeError, match=r"The val set is not there yet: call setup\('validate'\)"):
        GLUEDataModule(task="rte", tokenizer=path).val_dataloader()


def test_overfit_batches_would_replace_the_sampler(path: str, tmp_path: Path) -> None:
    data = GLUEDataModule(task="rte", tokenizer=path, root=rte(tmp_path, 9, 4))
    with pytest.raises(ValueError, match="overfit_batches=.* would replace the sampler: use train_fraction"):
        quiet_trainer(max_epochs=1, overfit_batches=1).fit(Recorder(), data)


# From the file to the scores


def test_squad_from_the_file_to_the_scores(tmp_path: Path) -> None:
    """A tiny reader on its own questions: fitted, evaluated, and its answers written."""
    seed_everything(0)
    data = squad_data(tmp_path, tokenizer(tmp_path / "t"), seed=1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    network = BertForQuestionAnswering(BertConfig(vocab_size=300, **sizes, **quiet))
    settings = {"max_epochs": 100, "check_val_every_n_epoch": 100, "default_root_dir": tmp_path}
    trainer = quiet_trainer(**settings, callbacks=[AnswersWriter()])
    trainer.fit(QuestionAnswering(network, lr=3e-3), datamodule=data)
    scores = trainer.callback_metrics
    assert scores["val/exact"] == 100 and scores["val/HasAns_f1"] == scores["val/NoAns_f1"] == 100
    trainer.predict(trainer.lightning_module, datamodule=data)
    (file,) = tmp_path.rglob("predictions.json")
    assert json.loads(file.read_text()) == {"q0": "w2", "q1": "w3", "q2": ""}


def test_glue_from_the_file_to_the_scores(tmp_path: Path) -> None:
    """Goes on in mid-epoch: bit for bit as the straight run."""
    path, root = tokenizer(tmp_path / "t"), glue_files(tmp_path, "sst2")
    file = root / "SST-2/train.tsv"
    file.write_text(
        "sentence\tlabel\n" + "".join(f"{'good' if i % 2 else 'bad'} {'x' * (i % 7)}\t{i % 2}\n" for i in range(40))
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}

    def fit(checkpoint: Path | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        network = BertForSequenceClassification(BertConfig(vocab_size=300, **sizes))
        save = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=7, save_top_k=-1, filename="{step}")
        trainer = quiet_trainer(max_epochs=2, callbacks=[save], enable_checkpointing=True)
        data = GLUEDataModule(task="sst2", tokenizer=path, root=root, batch_size=4)
        trainer.fit(SequenceClassifier(network, 2, "sst2", lr=1e-3), datamodule=data, ckpt_path=checkpoint)
        return trainer.lightning_module.state_dict()

    straight = fit()
    resumed = fit(tmp_path / "saved/step=7.ckpt")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
