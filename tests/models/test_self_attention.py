"""Q, K and V of one layer, of every architecture, against hooks on the whole network."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
from minilm_toy import ARCHITECTURES, batch, encoder, hooked
from torch.utils.checkpoint import checkpoint
from transformers import BertForMaskedLM, GPT2Config, GPT2Model

from lit_kd.models.self_attention import ATTENTION_PATHS, SelfAttentionVectors, truncated
from lit_kd.models.text import known_inputs


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_vectors_are_those_of_the_whole_network(kind: str, layer: int) -> None:
    network = encoder(kind).eval()
    expected = hooked(network, layer, batch())
    vectors = SelfAttentionVectors(truncated(network, layer))(**known_inputs(network, batch()))
    assert list(vectors) == ["q", "k", "v"]
    for vector, other in zip(vectors.values(), expected, strict=True):
        torch.testing.assert_close(vector, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_outside_of_the_block_the_network_is_whole(kind: str) -> None:
    network = encoder(kind).eval()
    inputs = known_inputs(network, batch())
    before = network(**inputs).last_hidden_state
    SelfAttentionVectors(network)(**inputs)
    assert torch.equal(network(**inputs).last_hidden_state, before)
    assert torch.equal(copy.deepcopy(network)(**inputs).last_hidden_state, before)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_truncated_network_leaves_the_whole_one_alone(kind: str) -> None:
    network = encoder(kind).eval()
    inputs = known_inputs(network, batch())
    before, keys = network(**inputs).last_hidden_state, list(network.state_dict())
    part = truncated(network, 2)
    assert torch.equal(part(**inputs).last_hidden_state, truncated(part, 2)(**inputs).last_hidden_state)
    assert torch.equal(network(**inputs).last_hidden_state, before) and list(network.state_dict()) == keys
    assert (network.config.num_hidden_layers, part.config.num_hidden_layers) == (3, 2)


def test_upper_layers_are_freed_with_the_network() -> None:
    network = encoder()
    upper, lower = weakref.ref(network.encoder.layer[2]), weakref.ref(network.encoder.layer[1])
    part = truncated(network, 2)
    del network
    gc.collect()
    assert upper() is None and part.get_submodule("encoder.layer.1") is lower()


def test_a_head_is_not_run() -> None:
    network = BertForMaskedLM(encoder().config).eval()
    network.cls.register_forward_hook(lambda *args: pytest.fail("it was"))
    inputs = known_inputs(network, batch())
    for part in (network, truncated(network, 3)):
        assert torch.equal(SelfAttentionVectors(part)(**inputs)["v"], hooked(network.bert, 3, inputs)[2])


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if ATTENTION_PATHS[kind].plain])
def test_attention_of_the_vectors_is_the_eager_one(kind: str) -> None:
    """softmax(Q K^T / sqrt(d) + mask), from a network that runs sdpa."""
    network = encoder(kind).eval()
    inputs = known_inputs(network, batch())
    vectors = SelfAttentionVectors(network)(**inputs)
    q, k = (vectors[name].unflatten(2, (4, -1)).transpose(1, 2) for name in "qk")
    scores = (q @ k.mT / q.shape[3] ** 0.5).masked_fill(inputs["attention_mask"][:, None, None] == 0, -1e9)
    assert network.config._attn_implementation == "sdpa"
    network.set_attn_implementation("eager")
    expected = network(**inputs, output_attentions=True).attentions[-1]
    torch.testing.assert_close(scores.softmax(3), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "deberta-v2", "modernbert"])
def test_gradient_checkpointing_changes_no_gradient(kind: str, reentrant: bool) -> None:
    """Reentrant, too: the projections lie outside of what is checkpointed."""
    gradients = []
    for checkpointed in (False, True):
        network = encoder(kind).train()
        if checkpointed:
            network.gradient_checkpointing_enable({"use_reentrant": reentrant})
        vectors = SelfAttentionVectors(network)(**known_inputs(network, batch()))
        sum(vector.square().sum() for vector in vectors.values()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    assert any(gradient is not None for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient is None) == (other is None), name
        if gradient is not None:
            torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-6)


def test_reentrant_checkpointing_that_cuts_the_graph_is_an_error() -> None:
    network = encoder().train()
    network.embeddings.requires_grad_(False)
    vectors = SelfAttentionVectors(network)
    network._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=True))  # transformers' own mends it
    with pytest.raises(ValueError, match="use_reentrant=False"):
        vectors(**known_inputs(network, batch()))


def test_nothing_is_kept_and_an_exception_leaves_no_trace() -> None:
    network = SelfAttentionVectors(encoder())
    vectors = network(**known_inputs(network.module, batch()))
    kept = weakref.ref(vectors["q"])
    del vectors
    gc.collect()
    assert kept() is None
    with pytest.raises(IndexError):
        network(input_ids=torch.tensor([[1000]]))
    assert "forward" not in vars(network.module.encoder.layer[-1])


def test_unknown_architectures_and_layers_say_so() -> None:
    with pytest.raises(ValueError, match="'gpt2' is not known; known are bert, .*modernbert"):
        SelfAttentionVectors(GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10)))
    for layer in (0, 4):
        with pytest.raises(ValueError, match=f"teacher_layer={layer} does not exist: BertModel has layers 1 to 3"):
            truncated(encoder(), layer)
    with pytest.raises(ValueError, match="more than one group"):
        SelfAttentionVectors(encoder("albert", num_hidden_groups=3))
