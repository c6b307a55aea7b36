"""Tiny tokenizers of characters with chat templates of three families, and tiny causal networks that know their ids."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (  # writes its BOS, refuses system messages, closes turns by another token than its EOS
    "<s>{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
THINKING = (  # the generation prompt is no prefix of the whole chat
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = len(SPECIAL) + 256


def chat_tokenizer(folder: Path, template: str | None = CHATML, bos: bool = True, **changes: Any) -> str:
    """A tokenizer of bytes; with `bos` it puts <s> in front. It has no padding token."""
    names = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    if bos:
        raw.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **changes}
    names_of_inputs = ["input_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_input_names=names_of_inputs, **special)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


def causal(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A network without dropout."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "attention_dropout": 0.0,
    }
    if kind == "gpt2":
        changes = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, **changes}
    if kind in ("gpt2", "opt", "bloom", "gpt_neox"):
        settings = {name: settings[name] for name in settings if name not in ("head_dim", "num_key_value_heads")}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**settings, **changes})).eval()


def saved(folder: Path, network: Any = None, template: str | None = CHATML) -> str:
    """A network and a tokenizer in a folder."""
    (network or causal()).save_pretrained(folder)
    return chat_tokenizer(folder, template)
