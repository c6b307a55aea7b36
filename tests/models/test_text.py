"""The factory of text encoders: sizes of MiniLM's table, initialisations, export, checks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from minilm_toy import batch, encoder, saved
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from lit_kd.models import save_exported, text_encoder
from lit_kd.models.text import check_tokenizers, find_tokenizer, known_inputs, longest_sequence


@pytest.mark.parametrize(
    ("layers", "hidden", "embeddings", "blocks", "total"),
    [
        (12, 768, 23.44, 85.05, 109.48),
        (6, 768, 23.44, 42.53, 66.96),
        (12, 384, 11.72, 21.29, 33.36),
        (6, 384, 11.72, 10.65, 22.71),
        (4, 384, 11.72, 7.10, 19.16),
        (3, 384, 11.72, 5.32, 17.39),
    ],
)
def test_sizes_of_the_papers_students(
    layers: int, hidden: int, embeddings: float, blocks: float, total: float, tmp_path: Path
) -> None:
    BertConfig().save_pretrained(tmp_path)
    changes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 4 * hidden}
    with torch.device("meta"):
        network: Any = text_encoder(str(tmp_path), init="random", config=changes)
    counts = [
        network.embeddings.word_embeddings.weight.numel(),
        *(sum(p.numel() for p in part.parameters()) for part in (network.encoder, network)),
    ]
    assert [round(count / 1e6, 2) for count in counts] == [embeddings, blocks, total]


def test_layers_of_the_teacher(tmp_path: Path) -> None:
    teacher = encoder(num_hidden_layers=12)
    path = saved(teacher, tmp_path)
    student: Any = text_encoder(path, init="layers", config={"num_hidden_layers": 6})
    for own, other in zip(student.encoder.layer, (0, 2, 4, 7, 9, 11), strict=True):
        for a, b in zip(own.parameters(), teacher.encoder.layer[other].parameters(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(student.embeddings.word_embeddings.weight, teacher.embeddings.word_embeddings.weight)
    random: Any = text_encoder(path, init="random", config={"num_hidden_layers": 6})
    assert not torch.equal(random.embeddings.word_embeddings.weight, teacher.embeddings.word_embeddings.weight)


@pytest.mark.parametrize(("head", "size"), [("sequence_classification", 5), ("question_answering", 2)])
def test_heads(head: Any, size: int, tmp_path: Path) -> None:
    network = text_encoder(saved(encoder(), tmp_path), head=head, num_labels=5 if size == 5 else None)
    output = network(**known_inputs(network, batch()))
    assert (output.logits if size == 5 else output.start_logits).shape == ((2, 5) if size == 5 else (2, 7))


def test_export_is_what_transformers_load(tmp_path: Path) -> None:
    network = text_encoder(saved(encoder(), tmp_path / "from"), init="random", config={"num_hidden_layers": 2}).eval()
    save_exported(network, tmp_path / "to")
    assert {p.name for p in (tmp_path / "to").iterdir()} >= {"config.json", "model.safetensors", "model.json"}
    loaded = AutoModel.from_pretrained(tmp_path / "to").eval()
    inputs = known_inputs(network, batch())
    for ours, theirs in zip(network(**inputs).values(), loaded(**inputs).values(), strict=True):
        assert torch.equal(ours, theirs)
    assert AutoTokenizer.from_pretrained(tmp_path / "to")("w3 w4").input_ids == [0, 8, 9, 2]


def test_networks_get_what_they_know() -> None:
    inputs = {**batch(), "token_type_ids": torch.zeros(2, 7, dtype=torch.int64), "labels": torch.zeros(2)}
    assert known_inputs(encoder(), inputs).keys() == {"input_ids", "attention_mask", "token_type_ids"}
    assert known_inputs(encoder("distilbert"), inputs).keys() == {"input_ids", "attention_mask"}
    roberta = encoder("roberta", type_vocab_size=1)
    roberta(**known_inputs(roberta, {**inputs, "token_type_ids": torch.ones(2, 7, dtype=torch.int64)}))


@pytest.mark.parametrize(
    ("kind", "longest"), [("bert", 32), ("roberta", 30), ("mpnet", 30), ("deberta-v2", None), ("modernbert", 32)]
)
def test_longest_sequence(kind: str, longest: int | None) -> None:
    """RoBERTa's positions begin behind that of the padding, id 1 here."""
    assert longest_sequence(encoder(kind)) == longest
    assert longest_sequence(nn.Linear(1, 1)) is None


def test_tokenizers_are_compared_by_what_ids_mean(tmp_path: Path) -> None:
    first = text_encoder(saved(encoder(), tmp_path / "a"))
    second = text_encoder(saved(encoder(seed=1), tmp_path / "b"))
    check_tokenizers(student=first, teacher=second)
    words = (tmp_path / "b/vocab.txt").read_text().split()
    (tmp_path / "b/vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]))
    from transformers import BertTokenizerFast

    BertTokenizerFast(str(tmp_path / "b/vocab.txt")).save_pretrained(tmp_path / "b")
    with pytest.raises(ValueError, match="different tokenizers"):
        check_tokenizers(student=first, teacher=second)
    with pytest.raises(ValueError, match="Data and student have different tokenizers .40 and 50 tokens"):
        check_tokenizers(data=encoder(), student=encoder(vocab_size=50))
    check_tokenizers(data=None, student=first)


def test_a_configuration_alone_is_no_tokenizer(tmp_path: Path) -> None:
    """Transformers 5 makes one of it that knows special tokens only: all text would be unknown."""
    encoder().save_pretrained(tmp_path / "bare")
    with pytest.warns(UserWarning, match="bare holds no tokenizer .it would know special tokens only"):
        assert find_tokenizer(str(tmp_path / "bare")) is None
    with pytest.warns(UserWarning, match="absent holds no tokenizer"):
        assert find_tokenizer(str(tmp_path / "absent")) is None
    with pytest.warns(UserWarning, match="holds no tokenizer"):
        save_exported(text_encoder(str(tmp_path / "bare")), tmp_path / "to")
    assert {p.name for p in (tmp_path / "to").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "model.json",
    }


def test_weights_are_float32(tmp_path: Path) -> None:
    path = saved(encoder().half(), tmp_path)
    for init in ("pretrained", "random", "layers"):
        network = text_encoder(path, init=init)  # type: ignore[arg-type]
        assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_fewer_layers_of_modernbert(tmp_path: Path) -> None:
    path = saved(encoder("modernbert"), tmp_path / "from")
    network = text_encoder(path, init="random", config={"num_hidden_layers": 2})
    save_exported(network, tmp_path / "to")
    assert text_encoder(str(tmp_path / "to")).get_submodule("layers.1") is not None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"config": {"depth": 3}}, "config names 'depth', which a bert configuration does not have"),
        ({"init": "layers", "config": {"hidden_size": 12}}, r"student \(3 x 12\) needs the width"),
        ({"init": "layers", "config": {"num_hidden_layers": 4}}, r"student \(4 x 24\) needs the width"),
    ],
)
def test_bad_arguments_say_so(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        text_encoder(saved(encoder(), tmp_path), **settings)


def test_checkpointing_is_not_reentrant(tmp_path: Path) -> None:
    network = text_encoder(saved(encoder(), tmp_path), gradient_checkpointing=True)
    assert isinstance(network, BertModel) and network.is_gradient_checkpointing
