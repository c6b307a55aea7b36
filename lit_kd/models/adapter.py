"""LoRA adapters of peft: what a checkpoint holds of such a network, and the network with its adapter merged."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def with_adapter(network: nn.Module, lora: dict[str, Any]) -> Any:
    """The network frozen, with a trainable adapter in it (a ``PeftModel``) that alone is in its ``state_dict``.

    A strict ``load_state_dict`` does not miss what is frozen, and the adapter stays trainable after it.

    Raises:
        ImportError: peft is missing.
        ValueError: an argument that ``peft.LoraConfig`` does not know, modules that the network does not have, or an
            initialisation that changes the frozen weights.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("lora needs peft: pip install 'lit-kd[llm]'.") from error
    try:
        config = LoraConfig(**{"task_type": "CAUSAL_LM", **lora})
    except TypeError as error:
        raise ValueError(f"lora={lora} are not arguments of peft.LoraConfig: {error}.") from error
    if str(config.init_lora_weights).startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise ValueError(
            f"init_lora_weights={config.init_lora_weights!r} changes the frozen weights, which no checkpoint of ours "
            "holds and which are the network without its adapter: leave it out, or take gaussian."
        )
    adapted: Any = get_peft_model(network, config)
    adapted.saves_trained_only = True
    adapted.register_state_dict_post_hook(_leave_out_frozen)
    adapted.register_load_state_dict_pre_hook(_fill_in_frozen)
    return adapted


def _leave_out_frozen(network: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    if "saves_trained_only" in vars(network):
        kept = {prefix + name for name in _trained(network)}
        for key in [key for key in state if key.startswith(prefix) and key not in kept]:
            del state[key]


def _fill_in_frozen(network: Any, state: dict[str, Any], prefix: str, *args: Any) -> None:
    with whole_state(network):
        own = network.state_dict()
    for name in own.keys() - _trained(network):
        state.setdefault(prefix + name, own[name])  # is copied onto itself


def _trained(network: nn.Module) -> set[str]:
    return {name for name, value in network.named_parameters(remove_duplicate=False) if value.requires_grad}


@contextmanager
def whole_state(network: Any) -> Iterator[None]:
    """Inside the block the ``state_dict`` holds what is frozen, too; of a network without adapter it does anyhow."""
    before = vars(network).pop("saves_trained_only", None)
    try:
        yield
    finally:
        if before is not None:
            network.saves_trained_only = before


def merged(network: Any, state: Mapping[str, Tensor]) -> Any:
    """A network of transformers with the adapter of ``network`` added to its weights; ``network`` is not touched.

    Args:
        network: a ``PeftModel``.
        state: all its values, see :func:`whole_state`; gathered, under a sharding strategy.
    """
    from peft import get_peft_model

    base, adapter = network.get_base_model(), network.active_adapter
    with torch.device("meta"):
        whole = type(base)(copy.deepcopy(base.config))
        twin: Any = get_peft_model(whole, copy.deepcopy(network.peft_config[adapter]), adapter)
    twin.load_state_dict(state, assign=True)
    whole = twin.merge_and_unload(safe_merge=True)  # without: in place, and on a CPU these are the live values
    head, embeddings = whole.get_output_embeddings().weight, whole.get_input_embeddings().weight
    if head.shape != embeddings.shape or not torch.equal(head, embeddings):
        whole.config.tie_word_embeddings = False  # an adapter on one of the two
    whole.tie_weights()
    whole.generation_config = base.generation_config
    whole.tokenizer_path = getattr(network, "tokenizer_path", None)
    return whole
