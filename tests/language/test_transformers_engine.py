"""Generation in this process: draws belong to a completion, nothing leaks in, nothing is left changed."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from chat_toy import causal, saved
from torch import Tensor, nn

from lit_kd.language.chat import encode_prompt, lm_tokenizer
from lit_kd.language.engines import Completion, Sampling, TransformersEngine, VLLMEngine
from lit_kd.language.engines.hugging_face import _Choose
from lit_kd.language.engines.sampling import uniforms
from lit_kd.models import causal_lm

EOS, END = 2, 4
PROMPTS: list[Any] = ["a", "a long prompt", [{"role": "user", "content": "hi"}], "bc", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    # Logits small enough that many tokens, the ends among them, are drawn.
    network = causal(max_position_embeddings=128, initializer_range=0.1)
    with torch.no_grad():
        network.lm_head.weight[[EOS, END]] += 0.5 * torch.randn(2, 16)
    return saved(tmp_path_factory.mktemp("engine"), network)


def engine(folder: str, batch_size: int = 16, **settings: Any) -> TransformersEngine:
    return TransformersEngine(causal_lm(folder, **settings), lm_tokenizer(folder), batch_size)


SAMPLINGS = [
    Sampling(12, samples=3, seed=5),
    Sampling(12, temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.3, samples=2),
    Sampling(12, temperature=0),
    Sampling(12, temperature=0, repetition_penalty=1.5),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_results_do_not_depend_on_batch_order_and_companions(sampling: Sampling, folder: str) -> None:
    whole = engine(folder).generate(PROMPTS, sampling, keys=[9, 1, 2, 3, 4])
    assert [len(completions) for completions in whole] == [sampling.samples] * 5
    for batch_size in (1, 2):
        assert engine(folder, batch_size).generate(PROMPTS, sampling, keys=[9, 1, 2, 3, 4]) == whole
    order = [3, 0, 4, 2, 1]
    shuffled = engine(folder, 3).generate(
        [PROMPTS[i] for i in order], sampling, keys=[[9, 1, 2, 3, 4][i] for i in order]
    )
    assert shuffled == [whole[i] for i in order]
    assert engine(folder).generate(PROMPTS[2:3], sampling, keys=[2]) == whole[2:3]
    if sampling.temperature:
        assert whole[0] != whole[4]  # one prompt, two keys
        assert len({completion.ids for completion in whole[0]}) == sampling.samples
        assert whole != engine(folder).generate(PROMPTS, Sampling(**{**vars(sampling), "seed": 6}), [9, 1, 2, 3, 4])
        assert engine(folder).generate(PROMPTS, sampling) == engine(folder).generate(PROMPTS, sampling, range(5))
    more = Sampling(**{**vars(sampling), "samples": sampling.samples + 1, "max_new_tokens": 20})
    longer = engine(folder).generate(PROMPTS, more, keys=[9, 1, 2, 3, 4])
    for few, many in zip(whole, longer, strict=True):  # more samples, and more tokens of each, begin with those
        for short, long in zip(few, many[:-1], strict=True):
            assert long.ids is not None and short.ids == long.ids[: short.completion_tokens]


def test_greedy_is_that_of_generate(folder: str) -> None:
    own = engine(folder)
    found = own.generate(PROMPTS, Sampling(10, temperature=0))
    for prompt, (completion,) in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([encode_prompt(own.tokenizer, prompt)])
        plain = own.network.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10,
            eos_token_id=[EOS, END], pad_token_id=0,
        )  # fmt: skip
        assert completion.ids == tuple(plain[0, ids.shape[1] :].tolist())
        assert completion.prompt_tokens == ids.shape[1]


def test_ends_are_kept_and_several_are_known(folder: str) -> None:
    found = engine(folder).generate(["a"], Sampling(40, samples=60))[0]
    ends = {completion.ids[-1] for completion in found if completion.finish_reason == "stop"}  # type: ignore[index]
    assert ends == {EOS, END}
    for completion in found:
        ids = completion.ids
        assert ids is not None and len(ids) == completion.completion_tokens
        assert not {EOS, END} & set(ids[:-1])
        assert completion.finish_reason == ("stop" if ids[-1] in (EOS, END) else "length")
        assert completion.finish_reason == "stop" or len(ids) == 40
        assert "</s>" not in completion.text and "<|im_end|>" not in completion.text
    third = engine(folder)
    third.network.generation_config.eos_token_id = [EOS, 70]  # type: ignore[union-attr]
    assert any(c.ids[-1] == 70 for c in third.generate(["a"], Sampling(40, samples=60))[0])  # type: ignore[index]


def test_settings_of_the_checkpoint_do_not_leak(folder: str) -> None:
    plain, spoilt = engine(folder), engine(folder)
    config: Any = spoilt.network.generation_config
    config.update(top_p=0.1, top_k=2, temperature=0.2, repetition_penalty=2.0, do_sample=True, min_new_tokens=9)
    config.update(suppress_tokens=list(range(5, 200)), num_beams=2)
    for sampling in (Sampling(8, samples=2), Sampling(8, temperature=0)):
        assert plain.generate(PROMPTS, sampling) == spoilt.generate(PROMPTS, sampling)
    assert spoilt.network.generation_config is config and config.top_p == 0.1


def test_trained_network_is_left_as_it_was(folder: str) -> None:
    own = engine(folder, lora={"r": 2, "lora_dropout": 0.5}, gradient_checkpointing=True)
    network: Any = own.network
    network.train()
    network.get_base_model().model.layers[0].eval()
    network.get_base_model().config.use_cache = False
    seen: list[tuple[bool, bool, bool]] = []

    def state() -> list[Any]:
        named = network.named_modules()
        return [(name, part.training, getattr(part, "gradient_checkpointing", None)) for name, part in named]

    def look(part: nn.Module, arguments: Any, output: Any) -> None:
        recomputing = any(getattr(one, "gradient_checkpointing", False) for one in network.modules())
        seen.append((part.training, recomputing, torch.is_grad_enabled()))

    handle = network.get_base_model().model.layers[1].register_forward_hook(look)
    before, random_state = state(), torch.get_rng_state()
    first = own.generate(PROMPTS, Sampling(5, samples=2))
    handle.remove()
    assert len(seen) == 5 and set(seen) == {(False, False, False)}
    assert state() == before and any(recomputes for *_, recomputes in before)
    assert network.get_base_model().config.use_cache is False
    assert torch.equal(torch.get_rng_state(), random_state)
    assert first == engine(folder).generate(PROMPTS, Sampling(5, samples=2))  # B = 0 and no dropout
    network(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()
    network.get_base_model().model.layers[0].forward = None
    with pytest.raises(TypeError):  # also after an exception
        own.generate(["a"], Sampling(5))
    assert state() == before


def test_adapter_off_is_the_base(folder: str) -> None:
    own = engine(folder, lora={"r": 2, "init_lora_weights": False})
    sampling = Sampling(8, samples=2)
    base = engine(folder).generate(PROMPTS, sampling)
    assert own.generate(PROMPTS, sampling) != base
    with own.network.disable_adapter():  # type: ignore[operator]
        assert own.generate(PROMPTS, sampling) == base


def test_draws_follow_the_distribution(folder: str) -> None:
    own = engine(folder, batch_size=500)
    ids = torch.tensor([encode_prompt(own.tokenizer, "a")])
    with torch.no_grad():
        expected = own.network(input_ids=ids).logits[0, -1].double().softmax(-1)
    found = own.generate(["a"], Sampling(1, samples=4000))[0]
    counts = torch.zeros(len(expected)).double()
    for completion in found:
        counts[completion.ids[0]] += 1  # type: ignore[index]
    chi = ((counts - 4000 * expected).square() / (4000 * expected)).sum().item()
    freedom = len(expected) - 1
    assert abs(chi - freedom) < 4 * (2 * freedom) ** 0.5


def test_draws_are_the_inverse_of_the_distribution_function() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).double()
    for uniform, token in ((0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (1 - 2.0**-48, 4)):
        choose = _Choose(Sampling(), torch.ones(1, 1).bool(), torch.tensor([[uniform]], dtype=torch.float64))
        assert choose(torch.zeros(1, 1).long(), probabilities.log()).argmax().item() == token


def test_uniforms_are_functions_of_their_three_numbers() -> None:
    first = uniforms([0, 1, 2], 5000)
    assert np.array_equal(uniforms([0, 1, 2], 10), first[:10])
    for other in ([1, 1, 2], [0, 2, 2], [0, 1, 3]):
        assert abs(np.corrcoef(first, uniforms(other, 5000))[0, 1]) < 0.06
    assert first.min() >= 0 and first.max() < 1 and abs(first.mean() - 0.5) < 0.02
    # The generator's numbers must not change from release to release: manifests rely on the seed.
    bits = np.random.Philox(np.random.SeedSequence([0, 1, 2])).random_raw(2)
    assert first[:2].tolist() == [int(one >> np.uint64(16)) / 2**48 for one in bits]


@pytest.mark.parametrize(
    "settings",
    [{"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.5, "top_k": 9, "top_p": 0.7, "min_p": 0.05},
     {"repetition_penalty": 1.7, "top_k": 9}],
)  # fmt: skip
def test_choice_is_that_of_transformers(settings: dict[str, Any]) -> None:
    """The tokens that can be drawn, and how probable they are, as ``generate`` with ``do_sample=True`` has them."""
    torch.manual_seed(0)
    network = causal()
    scores, ids = torch.randn(1, 30), torch.tensor([[7, 8, 9]])
    config = transformers.GenerationConfig(do_sample=True, **{"top_k": 0, **settings})
    config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    processors = network._get_logits_processor(config, input_ids_seq_length=3, device="cpu")
    expected = processors(ids, scores.clone()).double().softmax(-1)[0]
    grid = (torch.arange(20000).double() + 0.5) / 20000
    choose = _Choose(Sampling(**settings), torch.ones(20000, 3).bool(), grid[:, None])
    drawn = choose(ids.expand(20000, 3), scores.expand(20000, -1)).argmax(-1)
    found = torch.bincount(drawn, minlength=30) / 20000
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    assert (found > 0).sum() < 30


def test_context_is_not_overrun(folder: str, tmp_path: Path) -> None:
    path = saved(tmp_path, causal("gpt2", max_position_embeddings=16))  # a table of positions: beyond it an IndexError
    own = TransformersEngine(causal_lm(path), lm_tokenizer(path))
    prompts = ["12345678901", "a", "1234567890123"]
    found = own.generate(prompts, Sampling(8, temperature=0))
    assert [completion.prompt_tokens for (completion,) in found] == [12, 2, 14]
    for (completion,), limit in zip(found, (4, 8, 2), strict=True):
        assert completion.completion_tokens == limit or completion.finish_reason == "stop"
    with pytest.raises(ValueError, match="Prompt 1 has 17 tokens, which leaves no room in the 16 positions"):
        own.generate(["a", "1234567890123456"], Sampling(8))


def test_ids_are_prompts(folder: str) -> None:
    own = engine(folder)
    ids: list[Any] = [tuple(encode_prompt(own.tokenizer, prompt)) for prompt in PROMPTS]
    assert own.generate(ids, Sampling(6, seed=2)) == own.generate(PROMPTS, Sampling(6, seed=2))
    with pytest.raises(ValueError, match="Prompt 1 is empty"):
        own.generate([ids[0], ()], Sampling(2))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_budgets_cut_rows_that_share_a_batch(temperature: float, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, sampling = engine(folder), Sampling(12, temperature=temperature, samples=2, seed=5)
    whole = own.generate(PROMPTS, sampling)
    budgets = [3, 12, 1, 40, 7]
    network: Any = own.network
    steps = []
    monkeypatch.setattr(network, "forward", lambda *a, f=network.forward, **k: (steps.append(1), f(*a, **k))[1])
    found = own.generate(PROMPTS, sampling, budgets=budgets)
    assert len(steps) <= 12  # one batch
    assert any(completion.finish_reason == "length" for row in found for completion in row)
    for long, short, budget in zip(whole, found, budgets, strict=True):
        for straight, cut in zip(long, short, strict=True):
            assert straight.ids is not None and cut.ids == straight.ids[:budget]
            ended = cut.ids[-1] in (EOS, END)
            assert cut.finish_reason == ("stop" if ended else "length") and cut.completion_tokens == len(cut.ids)
            assert ended or cut.completion_tokens == min(budget, 12)
    assert engine(folder, 1).generate(PROMPTS, sampling, budgets=budgets) == found
    steps.clear()
    own.generate(PROMPTS, sampling, budgets=[2] * 5)
    assert len(steps) == 2  # all are done: nobody waits for max_new_tokens
    for bad in ([1], [0, 1, 1, 1, 1]):
        with pytest.raises(ValueError, match="budgets must be a number from 1 for each of 5 prompts"):
            own.generate(PROMPTS, sampling, budgets=bad)


def test_budgets_in_a_tight_context(tmp_path: Path) -> None:
    path = saved(tmp_path, causal("gpt2", max_position_embeddings=16))
    own = TransformersEngine(causal_lm(path), lm_tokenizer(path))
    prompts: list[Any] = [tuple(range(70, 70 + n)) for n in (3, 15, 8, 8)]
    found = own.generate(prompts, Sampling(16, temperature=0), budgets=[13, 1, 5, 9])
    alone = [own.generate([p], Sampling(b, temperature=0))[0] for p, b in zip(prompts, [13, 1, 5, 8], strict=True)]
    assert found == alone


def test_description(folder: str) -> None:
    expected = {"kind": "transformers", "model": folder, "class": "LlamaForCausalLM", "dtype": "float32"}
    assert engine(folder).describe() == expected == engine(folder, lora={"r": 2}).describe()


def test_bad_input(folder: str) -> None:
    for keys in ([1], [1, -1]):
        with pytest.raises(ValueError, match="keys must be a number from 0 for each of 2 prompts"):
            engine(folder).generate(["a", "b"], Sampling(1), keys)
    assert engine(folder).generate([], Sampling(1)) == []


# vLLM, which is not installed here


class StubLLM:
    """Answers each request with what it was asked."""

    made: list[dict[str, Any]] = []
    asked: list[Any] = []

    def __init__(self, **settings: Any) -> None:
        self.made.append(settings)

    def generate(self, requests: list[Any], parameters: list[Any], use_tqdm: bool) -> list[Any]:
        self.asked += zip(requests, parameters, strict=True)
        reasons = ["stop", "length", "abort"] * len(requests)
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=[70 + i, END], finish_reason=reasons[i])])
            for i in range(len(requests))
        ]


def test_vllm_gets_ids_and_all_settings(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stub: Any = ModuleType("vllm")
    stub.LLM, stub.SamplingParams = StubLLM, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "vllm", stub)
    own = VLLMEngine(folder, {"dtype": "float32"})
    assert StubLLM.made == [{"model": folder, "generation_config": "vllm", "dtype": "float32"}]
    found = own.generate(PROMPTS[:2], Sampling(9, samples=2, seed=3), keys=[8, 7])
    tokenizer = lm_tokenizer(folder)
    asked = [request["prompt_token_ids"] for request, _ in StubLLM.asked]
    ids = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS[:2]]
    assert asked == [ids[0], ids[0], ids[1], ids[1]]
    parameters = [settings for _, settings in StubLLM.asked]
    assert len({settings.pop("seed") for settings in parameters}) == 4
    expected = {"n": 1, "max_tokens": 9, "temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0}
    assert parameters == [{**expected, "repetition_penalty": 1.0, "stop_token_ids": [END, EOS]}] * 4
    assert found[0][0] == Completion(tokenizer.decode([70]), "stop", (70, END), len(ids[0]), 2)
    assert [completion.finish_reason for row in found for completion in row] == ["stop", "length", "error", "stop"]
    StubLLM.asked.clear()
    own.generate([(70, 71), "a"], Sampling(9), budgets=[4, 30])
    assert [settings["max_tokens"] for _, settings in StubLLM.asked] == [4, 9]
    assert StubLLM.asked[0][0] == {"prompt_token_ids": [70, 71]}
    assert own.describe() == {"kind": "vllm", "model": folder, "settings": {"dtype": "float32"}}


def test_missing_vllm(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="VLLMEngine needs vllm: pip install vllm"):
        VLLMEngine(folder)


def test_penalty_takes_no_notice_of_padding(folder: str) -> None:
    scores = torch.ones(1, 30)
    choose = _Choose(
        Sampling(temperature=0, repetition_penalty=2.0), torch.tensor([[False, True, True]]), torch.ones(1, 1)
    )
    found: Tensor = choose(torch.tensor([[7, 8, 9, 10]]), scores)
    assert (found != 1).nonzero()[:, 1].tolist() == [8, 9, 10]
