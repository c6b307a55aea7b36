"""Prompts and completions as token ids, joined once: what is trained on is what the network reads and writes itself.

A row is a prompt, up to and including the template's opening of the assistant's turn, and a completion, up to and
including the token that closes it. The two are tokenised apart and never rendered again as a whole: the prompt of a
thinking template is not a prefix of its whole chat, and tokens at the border would depend on the completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_kd.language.tokens import fast_tokenizer, special_frame

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]  # role and content
Prompt = str | list[Message] | tuple[int, ...]  # a text as it is, a chat that ends before the assistant's turn, or ids
_CONTENT = "CONTENT"


@dataclass(frozen=True)
class Example:
    """One row: ids of the prompt and of the completion, with all special tokens."""

    prompt: list[int]
    completion: list[int]


def lm_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a folder, a name on the hub or a .gguf file; without a padding token it pads by its EOS.

    That is safe here: masks come from lengths (:func:`collate`), so the EOS that ends a completion is trained on.

    Raises:
        ValueError: it can't be loaded, or has neither a padding token nor an EOS.
    """
    tokenizer = fast_tokenizer(path)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer={path!r} has neither pad_token nor eos_token: set them and save it again.")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Ids of a chat in the tokenizer's template, opened for the assistant, or of a text as it is; ids stay as they are.

    A text gets the special tokens that the tokenizer puts in front (one BOS, also where the text begins with it), and
    none behind; a template writes its own.

    Raises:
        ValueError: a chat without a template, that is empty or ends with the assistant's turn, or that the template
            refuses.
    """
    if isinstance(prompt, tuple):
        return list(prompt)
    if isinstance(prompt, str):
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        front = list(special_frame(tokenizer)[0])
        return ids if ids[: len(front)] == front else front + ids
    if not prompt or prompt[-1]["role"] == "assistant":
        raise ValueError(f"A chat must end with the turn before the assistant's, got roles {_roles(prompt)}.")
    # One call, and return_dict said: the default of transformers 5 is a dict.
    return _template(tokenizer, prompt, add_generation_prompt=True, tokenize=True, return_dict=False)


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of what the assistant says and, exactly once, the token by which its turn ends.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    ids, end = tokenizer(text, add_special_tokens=False)["input_ids"], _end_of_turn(tokenizer)
    while ids and ids[-1] == end:  # a text that was decoded with its special tokens
        ids.pop()
    return [*ids, end]


def end_tokens(tokenizer: PreTrainedTokenizerBase, network: Any = None) -> tuple[int, ...]:
    """Tokens that end a completion: the template's end of turn, and the EOS of tokenizer and generation config.

    Raises:
        ValueError: there is none.
    """
    found = [_end_of_turn(tokenizer), tokenizer.eos_token_id, *_own_ends(network)]
    return tuple(dict.fromkeys(token for token in found if token is not None))


def unlearnt_end(tokenizer: PreTrainedTokenizerBase, network: Any) -> str | None:
    """The token that closes the assistant's turn, if the checkpoint names its ends and this is none of them; else None.

    A base model with the template of a chat model (Qwen has such) has never written it.
    """
    end, own = _end_of_turn(tokenizer), _own_ends(network)
    return str(tokenizer.convert_ids_to_tokens(end)) if own and end not in own else None


def _own_ends(network: Any) -> list[int]:
    known = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
    return known if isinstance(known, list) else [] if known is None else [known]


def collate(examples: Sequence[Example], pad: int, side: Literal["left", "right"] = "right") -> dict[str, Tensor]:
    """Pad rows to the longest: ``input_ids`` and ``attention_mask`` int64 (B, T), ``completion_mask`` bool (B, T).

    Masks come from lengths alone, as ``pad`` may be the EOS.

    Args:
        examples: rows; completions may be empty (for generation).
        pad: id of the padding.
        side: where the padding is: "right" for training, "left" for generation.

    Raises:
        ValueError: a row has no prompt: nothing predicts its first token.
    """
    for number, example in enumerate(examples):
        if not example.prompt:
            raise ValueError(f"Row {number} has an empty prompt: nothing would predict its first token.")

    def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=fill, padding_side=side)

    return {
        "input_ids": padded([one.prompt + one.completion for one in examples], pad),
        "attention_mask": padded([[1] * (len(one.prompt) + len(one.completion)) for one in examples], 0),
        "completion_mask": padded([[0] * len(one.prompt) + [1] * len(one.completion) for one in examples], 0).bool(),
    }


def _end_of_turn(tokenizer: Any) -> int:
    """The first special token behind the assistant's words in the template; the EOS where there is none."""
    if tokenizer.chat_template is not None:
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _CONTENT}]
        behind = _template(tokenizer, chat, tokenize=False).rpartition(_CONTENT)[2]
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        for token in tokenizer(behind, add_special_tokens=False)["input_ids"]:
            if token in special:
                return token
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no end: neither its chat template closes a turn nor has it an eos_token.")
    return tokenizer.eos_token_id


def _template(tokenizer: Any, chat: list[Message], **settings: Any) -> Any:
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template: give prompts as plain text, "
            "or set its chat_template."
        )
    try:
        return tokenizer.apply_chat_template(chat, **settings)
    except TemplateError as error:  # as Gemma's does a system message
        raise ValueError(f"The chat template refuses the roles {_roles(chat)}: {error}.") from error


def _roles(chat: list[Message]) -> str:
    return ", ".join(message["role"] for message in chat) or "none"
