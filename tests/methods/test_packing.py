"""Several texts in a row equal the texts alone, in loss and gradients, for three families and both attentions."""

from typing import Any

import pytest
import torch
from chat_toy import causal, saved
from torch import Tensor, nn

from lit_kd.language.chat import Example, collate
from lit_kd.methods import LanguageDistill, LanguageModel
from lit_kd.models import causal_lm
from lit_kd.models.causal import CompletionStates

LENGTHS = [(3, 4), (5, 1), (2, 9), (4, 2), (1, 3), (6, 5)]
BINS = [[2, 0], [5, 3, 1], [4]]


def examples() -> list[Example]:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 250, (p + c,), generator=draw).tolist() for p, c in LENGTHS]
    return [Example(row[:p], row[p:]) for row, (p, _) in zip(rows, LENGTHS, strict=True)]


def alone() -> dict[str, Tensor]:
    """A text a row, in the order of the bins."""
    return collate([examples()[i] for row in BINS for i in row], 0)


def packed() -> dict[str, Tensor]:
    texts = examples()

    def rows(values: Any) -> Tensor:
        return nn.utils.rnn.pad_sequence(
            [torch.tensor([value for i in row for value in values(texts[i])]) for row in BINS], batch_first=True
        )

    return {
        "input_ids": rows(lambda one: one.prompt + one.completion),
        "attention_mask": rows(lambda one: [1] * (len(one.prompt) + len(one.completion))),
        "completion_mask": rows(lambda one: [0] * len(one.prompt) + [1] * len(one.completion)).bool(),
        "position_ids": rows(lambda one: range(len(one.prompt) + len(one.completion))),
    }


def network_of(kind: str, attention: str) -> Any:
    changes = {"n_head": 2, "n_embd": 16, "n_layer": 2} if kind == "gpt2" else {}
    network = causal(kind, **changes)
    network.set_attn_implementation(attention)
    return network


EVERY = [("token", kind, attention) for kind in ("llama", "gpt2", "qwen2") for attention in ("sdpa", "eager")]


# The weights of tokens do not depend on the network: one of them will do for "sequence".
@pytest.mark.parametrize(("reduction", "kind", "attention"), [*EVERY, ("sequence", "llama", "sdpa")])
def test_packed_equals_alone(reduction: Any, kind: str, attention: str) -> None:
    found = []
    for batch in (alone(), packed()):
        network = network_of(kind, attention)
        terms, count = LanguageModel(network, reduction=reduction, chunk=5).loss_sums(batch)
        (terms["ce"] / count).backward()
        found.append((terms["ce"].detach() / count, count, [parameter.grad for parameter in network.parameters()]))
    (one, count, gradients), (other, other_count, others) = found
    assert count == other_count == (24 if reduction == "token" else 6)
    torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_plain_mask_would_mix_texts(kind: str) -> None:
    module = LanguageModel(network_of(kind, "sdpa"))
    mixed = {name: value for name, value in packed().items() if name != "position_ids"}
    sums = [float(module.loss_sums(batch)[0]["ce"].detach()) for batch in (alone(), packed(), mixed)]
    assert sums[0] == pytest.approx(sums[1], abs=1e-4) and abs(sums[2] - sums[0]) > 0.1


@pytest.mark.parametrize("teacher", ["network", "adapter_off"])
def test_the_teacher_reads_packed_rows_too(teacher: str, tmp_path: Any) -> None:
    path = saved(tmp_path / "base")
    network = causal_lm(path, lora={"r": 4, "target_modules": "all-linear"})
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.5)
    other: Any = causal(seed=3) if teacher == "network" else teacher
    if teacher == "network":
        other.tokenizer_path = path
    module = LanguageDistill(network, other, temperature=2.0, ce_weight=0.5)
    one, packs = (module.loss_sums(batch)[0] for batch in (alone(), packed()))
    assert one["kd"] > 0.1
    for name, value in one.items():
        torch.testing.assert_close(packs[name], value, rtol=1e-5, atol=1e-5)


def test_padding_gives_no_nan_in_half_precision() -> None:
    network = network_of("llama", "eager").bfloat16()
    terms, count = LanguageModel(network).loss_sums(packed())
    terms["ce"].backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_networks_that_mix_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="BloomModel does not keep packed texts apart, .* train without packing"):
        LanguageModel(causal("bloom")).loss_sums(packed())
    with pytest.raises(ValueError, match="a text of 11 tokens, over the sliding window of 8 tokens of MistralModel"):
        LanguageModel(causal("mistral", sliding_window=8)).loss_sums(packed())
    LanguageModel(causal("mistral", sliding_window=11)).loss_sums(packed())
    states = CompletionStates(causal())
    decoder = states.network.get_decoder()
    monkeypatch.setattr(decoder.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(ValueError, match="need the attention sdpa or eager, not flash_attention_2"):
        states(lambda rows, head: rows, **packed())
    monkeypatch.undo()
    forward = decoder.forward

    def deaf(position_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:  # as recurrent layers are
        return forward(position_ids=position_ids, **inputs)

    monkeypatch.setattr(decoder, "forward", deaf)
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match="LlamaModel does not keep packed texts apart"):
        states(lambda rows, head: rows, **packed())
