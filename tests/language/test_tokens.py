"""Rows of token ids and their padding, against what transformers does."""

from pathlib import Path

import pytest
import torch
from datamodules.text_files import byte_tokenizer, tokenizer
from transformers import BertConfig

from lit_kd.language.tokens import CHUNK, Padding, encode, flat_rows, load_tokenizer, special_frame

TEXTS = ["a cat", "", "some dog sat there", "b"]
OTHERS = ["why not", "x", "", "never again"]


@pytest.mark.parametrize("second", [None, OTHERS])
@pytest.mark.parametrize("build", [tokenizer, byte_tokenizer])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("multiple", [None, 8])
def test_batches_are_those_of_transformers(
    side: str, multiple: int | None, second: list[str] | None, build: object, tmp_path: Path
) -> None:
    own = load_tokenizer(build(tmp_path, padding_side=side))  # type: ignore[operator]
    rows = encode(own, TEXTS, second, max_length=16)
    settings = {"truncation": True, "max_length": 16, "padding": True, "pad_to_multiple_of": multiple}
    expected = own(TEXTS, second, return_tensors="pt", **settings)
    batch = Padding.of(own, multiple)([rows.row(i) for i in range(4)])
    assert batch.keys() == expected.keys() == set(own.model_input_names)
    for name, values in expected.items():
        assert batch[name].dtype == torch.int64 and torch.equal(batch[name], values), name
    assert rows.lengths().tolist() == expected["attention_mask"].sum(1).tolist()


def test_many_texts_are_encoded_as_few(tmp_path: Path) -> None:
    own = load_tokenizer(tokenizer(tmp_path))
    texts = [str(i) for i in range(CHUNK + 3)]
    rows = encode(own, texts, max_length=9)
    for i in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        assert rows.row(i)[0].tolist() == own(texts[i])["input_ids"]


def test_special_tokens_around_a_text(tmp_path: Path) -> None:
    own = load_tokenizer(tokenizer(tmp_path))
    before, after = special_frame(own)
    assert (before, after) == ((own.cls_token_id,), (own.sep_token_id,))
    rows = flat_rows([own("cat", add_special_tokens=False)["input_ids"]])
    framed = type(rows)(rows.ids, rows.bounds, before=before, after=after)
    assert framed.row(0)[0].tolist() == own("cat")["input_ids"]
    assert framed.lengths().tolist() == [5]


def test_a_pad_token_is_needed(tmp_path: Path) -> None:
    path = byte_tokenizer(tmp_path, pad_token=None)
    with pytest.raises(ValueError, match="has no padding token: set its pad_token"):
        load_tokenizer(path)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tokenizer='.*nowhere' cannot be loaded .*: give a folder with tokenizer.json"
    ):
        load_tokenizer(str(tmp_path / "nowhere"))
    BertConfig().save_pretrained(tmp_path)  # of it transformers 5 makes one to which all text is unknown
    with pytest.raises(ValueError, match=r"tokenizer='.*' holds no vocabulary, so that all text would be unknown"):
        load_tokenizer(str(tmp_path))
