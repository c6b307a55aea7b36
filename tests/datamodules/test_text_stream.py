"""Corpora that are read while training: rows, shares, and the place where a resumed run goes on."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from text_files import tokenizer
from text_recorder import Recorder, corpus, straight_and_resumed, words
from toy import quiet_trainer
from transformers import AutoTokenizer

from lit_kd.datamodules import TextCorpusDataModule
from lit_kd.datamodules.text_stream import Cursor, StreamLoader, TextStream
from lit_kd.language.documents import Documents
from lit_kd.language.tokens import Padding, load_tokenizer

Ranks = Callable[[int, int], None]
Batches = list[tuple[list[int], list[list[int]]]]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return tokenizer(tmp_path / "tokenizer")


def stream(path: str, file: str, packed: bool = True, room: int = 5, batch_size: int = 2) -> TextStream:
    own = load_tokenizer(path)
    return TextStream(Documents((file,)), own, Padding.of(own), room, batch_size, packed)


def taken(loader: StreamLoader, count: int | None = None) -> Batches:
    return [(batch["index"].tolist(), batch["input_ids"].tolist()) for batch in islice(loader, count)]


def plain_rows(path: str, texts: list[str], packed: bool, room: int, shard: int, shards: int) -> list[list[int]]:
    """Three passes."""
    own = AutoTokenizer.from_pretrained(path)
    mine = [own(text, add_special_tokens=False)["input_ids"] for text in texts[shard::shards]] * 3
    if not packed:
        return [ids[begin : begin + room] for ids in mine for begin in range(0, len(ids), room)]
    joined = [token for ids in mine for token in [*ids, 3]]
    return [joined[begin : begin + room] for begin in range(0, len(joined) - room + 1, room)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("shard", "shards"), [(0, 1), (0, 3), (2, 3)])
def test_rows_and_cursors(packed: bool, shard: int, shards: int, path: str, tmp_path: Path) -> None:
    texts = words(10)
    source = stream(path, corpus(tmp_path, texts), packed)
    expected = plain_rows(path, texts, packed, 5, shard, shards)
    found = list(islice(source.rows(shard, shards, Cursor()), len(expected)))
    assert [ids for ids, _, _ in found] == expected
    assert all(document % shards == shard for _, document, _ in found)
    for number in range(0, len(expected), 3):
        rest = islice(source.rows(shard, shards, found[number][2]), len(expected) - number - 1)
        assert list(rest) == found[number + 1 :], "a stream goes on behind any row"


def test_index_is_the_document_that_a_row_begins_in(path: str, tmp_path: Path) -> None:
    source = stream(path, corpus(tmp_path, ["abcd", "", "efgh", "ij", "k"]), room=4)
    found = list(islice(source.rows(0, 1, Cursor()), 4))
    decode = load_tokenizer(path).decode
    rows = ["".join(decode(ids).replace("##", "").split()) for ids, _, _ in found]
    assert rows == ["abcd", "[SEP]efg", "h[SEP]ij", "[SEP]k[SEP]a"]
    assert [document for _, document, _ in found] == [0, 0, 2, 3]
    assert found[-1][2] == (1, 0, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_behind_any_batch(num_workers: int, path: str, tmp_path: Path) -> None:
    file = corpus(tmp_path, words(13))

    def loader(length: int | None = None) -> StreamLoader:
        return StreamLoader(stream(path, file), num_workers, 0, length)

    straight = taken(loader(), 15)
    for stop in (1, 4, 5):
        source = loader()
        assert taken(source, stop) == straight[:stop]
        resumed = loader()
        resumed.load_state_dict(source.state_dict())
        assert resumed.state_dict() == source.state_dict()
        assert taken(resumed, 15 - stop) == straight[stop:]
    epochs = loader(5)  # an epoch begins where the one before ended
    assert len(epochs) == 5 and [taken(epochs) for _ in range(3)] == [straight[:5], straight[5:10], straight[10:]]
    assert epochs.state_dict()["position"] == 0
    epochs.limit = 2
    assert taken(epochs, 2) == taken_after(loader(), 15, 2) and epochs.state_dict()["position"] == 0
    with pytest.raises(TypeError, match="no end"):
        len(loader())


def taken_after(loader: StreamLoader, skip: int, count: int) -> Batches:
    return taken(loader, skip + count)[skip:]


def test_processes_give_their_shares_in_turn(path: str, tmp_path: Path, ranks: Ranks) -> None:
    """Rank 1 of 2, with two processes: shares 2 and 3 of four."""
    texts = words(80)
    ranks(1, 2)
    found = taken(StreamLoader(stream(path, corpus(tmp_path, texts)), 2, 0, None), 12)
    for place in range(2):
        rows = plain_rows(path, texts, True, 5, 2 + place, 4)
        assert [row[1:-1] for _, ids in found[place::2] for row in ids] == rows[:12]


def test_other_numbers_of_processes_go_on_from_the_earliest_document(path: str, tmp_path: Path, ranks: Ranks) -> None:
    texts = words(40)
    file = corpus(tmp_path, texts)
    state = {"position": 7, "turn": 1, "cursors": [[[0, 12, 3], [0, 9, 1]], [[0, 14, 2], [1, 3, 2]]]}
    loader = StreamLoader(stream(path, file), 0, 0, None)
    with pytest.warns(UserWarning, match="2 ranks of 2 processes and is now by 1 of 1: it goes on from document 9"):
        loader.load_state_dict(state)
    rows = plain_rows(path, texts[9:], True, 5, 0, 1)
    assert [row[1:-1] for _, ids in taken(loader, 5) for row in ids] == rows[:10]


@pytest.mark.parametrize("files", [1, 2, 3])
def test_processes_share_a_set_of_datasets(files: int, path: str, tmp_path: Path) -> None:
    """Which hands whole files to the loader processes if it is asked row by row."""
    texts = words(60)
    for i in range(files):
        rows = [json.dumps({"text": text}) for text in texts[60 * i // files : 60 * (i + 1) // files]]
        corpus(tmp_path / "set", rows, f"train-{i}.jsonl")
    own = load_tokenizer(path)
    documents = Documents(dataset=str(tmp_path / "set"), streaming=True)
    source = TextStream(documents, own, Padding.of(own), 5, 2, True)
    expected = taken(StreamLoader(stream(path, corpus(tmp_path, texts)), 2, 0, None), 12)
    assert taken(StreamLoader(source, 2, 0, None), 12) == expected


def test_a_share_without_text(path: str, tmp_path: Path, ranks: Ranks) -> None:
    ranks(2, 3)
    with pytest.raises(ValueError, match="no text for rank and loader process 3 of 3: give more documents"):
        taken(StreamLoader(stream(path, corpus(tmp_path, ["a", "b"])), 0, 0, None), 1)


def test_texts_without_a_token_do_not_end_a_stream(path: str, tmp_path: Path) -> None:
    source = stream(path, corpus(tmp_path, ["\u200b", "ab", "\u200b"]), packed=False)
    assert [document for _, document, _ in islice(source.rows(0, 1, Cursor()), 3)] == [1, 1, 1]
    with pytest.raises(ValueError, match="no text for rank"):
        next(stream(path, corpus(tmp_path, ["\u200b"])).rows(0, 1, Cursor()))


# Through the trainer


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("stop_at", "data_settings", "settings"),
    [
        (3, {}, {"max_steps": 9}),
        (5, {"samples_per_epoch": 12}, {"max_epochs": 3}),  # four batches an epoch
        (4, {"samples_per_epoch": 12}, {"max_epochs": 3}),
        (4, {"samples_per_epoch": 60}, {"max_epochs": 3, "limit_train_batches": 4}),
    ],
)
def test_a_resumed_run_equals_a_straight_one(
    stop_at: int, data_settings: dict[str, Any], settings: dict[str, Any], num_workers: int, path: str, tmp_path: Path
) -> None:
    file = corpus(tmp_path, words(11))

    def build() -> TextCorpusDataModule:
        common: dict[str, Any] = {"tokenizer": path, "files": file, "max_length": 9, "batch_size": 3}
        return TextCorpusDataModule(streaming=True, num_workers=num_workers, **common, **data_settings)

    straight, first, rest = straight_and_resumed(build, tmp_path / "checkpoints", stop_at, **settings)
    assert len(straight.seen) == (9 if "max_steps" in settings else 12)
    assert first.seen + rest.seen == straight.seen
    assert torch.equal(rest.weight, straight.weight)
    assert all(len(row) == 9 for _, ids in straight.seen for row in ids)


def test_accumulated_batches_count(path: str, tmp_path: Path) -> None:
    file = corpus(tmp_path, words(11))
    data = TextCorpusDataModule(tokenizer=path, files=file, max_length=9, batch_size=3, streaming=True)
    module = Recorder()
    quiet_trainer(max_steps=4, accumulate_grad_batches=2).fit(module, data)
    assert len(module.seen) == 8 and len(data.train_dataloader()) == 8


def test_a_stream_needs_an_end(path: str, tmp_path: Path) -> None:
    data = TextCorpusDataModule(tokenizer=path, files=corpus(tmp_path, words(11)), streaming=True)
    with pytest.raises(ValueError, match="streaming=True has no end of its own: set the Trainer's max_steps, or"):
        quiet_trainer(max_epochs=2).fit(Recorder(), data)
    with pytest.raises(ValueError, match="overfit_batches"):
        quiet_trainer(max_steps=2, overfit_batches=1).fit(Recorder(), data)


def test_a_stream_is_not_counted(path: str, tmp_path: Path) -> None:
    """Lightning's description of a data module would read the loader to its end."""
    data = TextCorpusDataModule(tokenizer=path, files=corpus(tmp_path, words(3)), streaming=True)
    data.setup("fit")
    assert "TextCorpusDataModule" in str(data)
