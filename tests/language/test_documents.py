"""Corpora as streams of tokens, against plain loops."""

import json
from pathlib import Path

import pytest
import torch
from datamodules.text_files import byte_tokenizer, tokenizer

from lit_kd.language.documents import Documents, separator, tokenise, tokenizer_fingerprint
from lit_kd.language.tokens import load_tokenizer

SEP = 3


def write(folder: Path) -> tuple[str, str]:
    """Nine documents, of which two are blank, in two files."""
    (folder / "a.txt").write_bytes("one two\r\n\n  three\x85four five \n".encode())
    rows = [{"text": f"line {i}", "other": i} for i in range(4)]
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n  \n" + json.dumps({"text": " "}) + "\n")
    return str(folder / "a.txt"), str(folder / "b.jsonl")


def test_documents_are_lines(tmp_path: Path) -> None:
    documents = Documents(write(tmp_path))
    found = list(documents.read())
    assert found == [(0, "one two"), (2, "three\x85four five"), *((3 + i, f"line {i}") for i in range(4))]
    for first in range(9):
        assert list(documents.read(first)) == [pair for pair in found if pair[0] >= first]
        for shard in range(3):
            expected = [pair for pair in found if pair[0] >= first and pair[0] % 3 == shard]
            assert list(documents.read(first, shard, 3)) == expected


@pytest.mark.parametrize("streaming", [True, False])
def test_documents_of_datasets(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps({"body": f"row {i}"}) + "\n" for i in range(5)))
    documents = Documents(dataset=str(tmp_path / "set"), column="body", streaming=streaming)
    assert list(documents.read(1, 0, 2)) == [(2, "row 2"), (4, "row 4")]
    with pytest.raises(ValueError, match="has no text in column 'text', only body: give text_column"):
        list(Documents(dataset=str(tmp_path / "set"), streaming=streaming).read())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", b'{"text": 1}\n', "has no text in column 'text', only text"),
        ("a.jsonl", b'{"body": "x"}\n', "has no text in column 'text', only body"),
        ("a.jsonl", b"[1]\n", "has no text in column 'text', only list"),
        ("a.jsonl", b"{text}\n", "has a line that is no JSON .*: '{text}"),
        ("a.txt", b"caf\xe9\n", "a.txt is not UTF-8"),
    ],
)
def test_bad_files(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        list(Documents((str(tmp_path / name),)).read())


def test_a_missing_file(tmp_path: Path) -> None:
    documents = Documents((*write(tmp_path), str(tmp_path / "c.txt")))
    for use in (lambda: next(documents.read()), documents.fingerprint):  # before anything is read
        with pytest.raises(FileNotFoundError, match="c.txt does not exist: files must name"):
            use()


def test_tokens_of_all_documents(tmp_path: Path) -> None:
    own = load_tokenizer(tokenizer(tmp_path))
    texts = [f"text {i}" * (i % 5 + 1) for i in range(1500)]
    tokens = tokenise(own, [texts[0], "\u200b", *texts[1:]])  # a character that normalisation removes
    expected = [[*own(text, add_special_tokens=False)["input_ids"], SEP] for text in texts]
    assert tokens.ids.dtype == torch.int32 and tokens.ids.tolist() == [i for ids in expected for i in ids]
    assert tokens.ends.tolist() == torch.tensor([len(ids) for ids in expected]).cumsum(0).tolist()


@pytest.mark.parametrize("room", [1, 3, 5, 100])
def test_rows_lose_no_token(room: int, tmp_path: Path) -> None:
    own = load_tokenizer(tokenizer(tmp_path))
    texts = ["abcde", "f", "ghijk lmno", "pqr"]
    tokens = tokenise(own, texts)
    every = tokens.ids.tolist()
    rows = [every[start:end] for start, end in tokens.packed(room).tolist()]
    assert [i for row in rows for i in row] == every[:-1]  # all but the separator at the end
    assert all(len(row) == room for row in rows[:-1]) and 0 < len(rows[-1]) <= room
    documents = [own(text, add_special_tokens=False)["input_ids"] for text in texts]
    apart = [ids[begin : begin + room] for ids in documents for begin in range(0, len(ids), room)]
    assert [every[start:end] for start, end in tokens.apart(room).tolist()] == apart


def test_no_document(tmp_path: Path) -> None:
    tokens = tokenise(load_tokenizer(tokenizer(tmp_path)), [])
    assert len(tokens.ids) == len(tokens.ends) == len(tokens.packed(4)) == len(tokens.apart(4)) == 0


def test_separators(tmp_path: Path) -> None:
    assert separator(load_tokenizer(tokenizer(tmp_path / "a"))) == SEP
    plain = load_tokenizer(byte_tokenizer(tmp_path / "b", sep_token=None))
    assert separator(plain) == plain.eos_token_id
    with pytest.raises(ValueError, match="neither sep_token nor eos_token"):
        separator(load_tokenizer(byte_tokenizer(tmp_path / "c", sep_token=None, eos_token=None)))


def test_fingerprints_follow_contents(tmp_path: Path) -> None:
    files = write(tmp_path)
    first = Documents(files).fingerprint()
    assert first == Documents(files).fingerprint()
    assert first != Documents(files[::-1]).fingerprint()
    assert first != Documents(files, column="body").fingerprint()
    Path(files[0]).write_text("one three\n")
    assert first != Documents(files).fingerprint()
    own = load_tokenizer(tokenizer(tmp_path / "t"))
    before = tokenizer_fingerprint(own)
    own(["a", "b c"], padding=True, truncation=True, max_length=8)  # leaves its marks on a fast tokenizer
    assert tokenizer_fingerprint(own) == before
    assert tokenizer_fingerprint(load_tokenizer(byte_tokenizer(tmp_path / "b"))) != before
