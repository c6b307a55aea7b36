"""Queries, keys and values of one self-attention layer of a transformer encoder.

Attention probabilities would not do: under sdpa a network of Hugging Face's returns none, in train mode they are those
after dropout, and they are one (B, heads, S, S) for every layer where one layer's vectors are enough.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_kd.models.compiled import check_not_compiled
from lit_kd.models.modes import eval_mode

Vectors = dict[str, Tensor]  # "q", "k", "v": (B, S, H), the heads side by side


@dataclass(frozen=True)
class AttentionPaths:
    """Where an architecture keeps the three projections.

    Attributes:
        layers: Dotted path of its list of layers, from the base model.
        projections: Dotted paths in a layer of the maps to Q, K, V; or of one map to all three, side by side.
        norm: Dotted path in a layer of what its input goes through before the projections.
        shared: One layer is called again and again.
        plain: Its attention is softmax(Q K^T / sqrt(d)); False where positions enter the scores otherwise.
    """

    layers: str
    projections: tuple[str, ...]
    norm: str | None = None
    shared: bool = False
    plain: bool = True


def _three(
    layers: str, template: str, names: str = "query key value", shared: bool = False, plain: bool = True
) -> AttentionPaths:
    return AttentionPaths(layers, tuple(template.format(name) for name in names.split()), shared=shared, plain=plain)


# By `config.model_type`. An architecture of your own joins by an entry of yours.
ATTENTION_PATHS = {
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra"), _three("encoder.layer", "attention.self.{}")
    ),
    "distilbert": _three("transformer.layer", "attention.{}", "q_lin k_lin v_lin"),
    "albert": _three("encoder.albert_layer_groups", "albert_layers.0.attention.{}", shared=True),
    "mpnet": _three("encoder.layer", "attention.attn.{}", "q k v", plain=False),
    "deberta-v2": _three("encoder.layer", "attention.self.{}", "query_proj key_proj value_proj", plain=False),
    # Before the rotation: what is compared is then content alone, whatever the distance.
    "modernbert": AttentionPaths("layers", ("attn.Wqkv",), norm="attn_norm", plain=False),
}


def attention_paths(network: nn.Module) -> AttentionPaths:
    """Where a network of Hugging Face's keeps its projections.

    Raises:
        ValueError: its architecture is not known.
    """
    kind = getattr(getattr(network, "config", None), "model_type", type(network).__name__)
    if kind not in ATTENTION_PATHS:
        raise ValueError(
            f"The self-attention of {kind!r} is not known; known are {', '.join(ATTENTION_PATHS)}. Add yours to "
            "lit_kd.models.self_attention.ATTENTION_PATHS."
        )
    return ATTENTION_PATHS[kind]


class SelfAttentionVectors(nn.Module):
    """A network up to the projections of its last layer: ``forward(**inputs)`` gives Q, K and V.

    That layer computes Q, K and V of its input and nothing else: no attention, no feed-forward. Its parameters behind
    the projections get no gradient, and a head is not run. Called by itself, as ``self.module``, the network is whole.
    Attention implementation, dropout of the layers below and gradient checkpointing stay what they are. A module, and
    not hooks, because FSDP gathers weights for the backward where the outputs of a module enter the loss.

    Args:
        network: of Hugging Face, with or without a head; :func:`truncated` makes another layer its last.

    Raises:
        ValueError: an unknown architecture; by ``forward``, reentrant gradient checkpointing over frozen embeddings,
            which cuts the graph.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"vocab_size": 8, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
        >>> network = SelfAttentionVectors(BertModel(BertConfig(**sizes)))
        >>> vectors = network(input_ids=torch.ones(2, 5, dtype=torch.int64))
        >>> {name: tuple(vector.shape) for name, vector in vectors.items()}
        {'q': (2, 5, 12), 'k': (2, 5, 12), 'v': (2, 5, 12)}
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        check_not_compiled(network)
        self.module = network
        self._paths = attention_paths(network)
        returned: list[Any] = []
        handle = self._last.register_forward_hook(lambda layer, args, output: returned.append(output))
        example = torch.zeros(1, 2, dtype=torch.int64, device=next(network.parameters()).device)
        with torch.no_grad(), eval_mode(network):
            base_model(network)(input_ids=example)
        handle.remove()
        self._extra = len(returned[-1]) - 1 if isinstance(returned[-1], tuple) else None  # versions differ

    @property
    def _last(self) -> Any:
        return _layers(self.module)[-1]

    def forward(self, **inputs: Tensor) -> Vectors:
        """Q, K and V, (B, S, H) each."""
        with self._cut() as vectors:
            base_model(self.module)(**inputs)
        return vectors

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile each layer but the last, of which only projections are run.

        Raises:
            ValueError: one layer is called again and again.
        """
        if self._paths.shared:
            raise ValueError(f"{type(self.module).__name__} has one layer for all, which is cut short: do not compile.")
        for layer in _layers(self.module)[:-1]:
            layer.compile(*args, **kwargs)

    @contextmanager
    def _cut(self) -> Iterator[Vectors]:
        layer = self._last
        vectors: Vectors = {}
        calls, last_call = 0, self.module.config.num_hidden_layers if self._paths.shared else 1

        def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls < last_call:
                return type(layer).forward(layer, hidden, *args, **kwargs)
            self._check_graph(layer, hidden)
            vectors.update(self._project(layer, hidden))
            return hidden if self._extra is None else (hidden, *[None] * self._extra)

        checkpointed = getattr(layer, "gradient_checkpointing", False)
        layer.forward = forward  # shadows the method of this one object
        layer.gradient_checkpointing = False  # else the backward would run the whole layer again
        try:
            yield vectors
        finally:
            del layer.forward
            layer.gradient_checkpointing = checkpointed

    def _project(self, layer: nn.Module, hidden: Tensor) -> Vectors:
        if self._paths.norm is not None:
            hidden = layer.get_submodule(self._paths.norm)(hidden)
        projected = [layer.get_submodule(path)(hidden) for path in self._paths.projections]
        if len(projected) == 1:
            projected = list(projected[0].chunk(3, dim=-1))
        return dict(zip("qkv", projected, strict=True))

    def _check_graph(self, layer: nn.Module, hidden: Tensor) -> None:
        if hidden.requires_grad or not (torch.is_grad_enabled() and self.training):
            return
        own = set(layer.parameters())
        if any(p.requires_grad and p not in own for p in self.module.parameters()):
            raise ValueError(
                "No gradient reaches the layers below Q, K and V: gradient checkpointing with use_reentrant=True cuts "
                "the graph where the embeddings are frozen, so enable it with use_reentrant=False."
            )


def truncated(network: Any, layer: int) -> nn.Module:
    """The encoder without its head and without the layers above ``layer``, counted from 1.

    It shares its parts with the network, which stays whole; what only the network holds is freed with it.

    Raises:
        ValueError: an unknown architecture, or no such layer.
    """
    paths, count = attention_paths(network), network.config.num_hidden_layers
    if not 1 <= layer <= count:
        raise ValueError(f"teacher_layer={layer} does not exist: {type(network).__name__} has layers 1 to {count}.")
    twin = part = _twin(base_model(network))
    twin.config = copy.copy(twin.config)
    twin.config.num_hidden_layers = layer
    for name in paths.layers.split("."):
        child = part._modules[name] = _twin(part._modules[name])
        part.config = twin.config  # ALBERT counts by it
        part = child
    if not paths.shared:
        part._modules = dict(list(part._modules.items())[:layer])
    return twin


def _twin(module: Any) -> Any:
    """A module with the same parts whose list of sub-modules is its own."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _layers(network: Any) -> nn.ModuleList:
    paths = attention_paths(network)
    layers: Any = base_model(network).get_submodule(paths.layers)
    if paths.shared and (len(layers) > 1 or network.config.inner_group_num > 1):
        raise ValueError("ALBERT with more than one group of layers, or several layers in one, is not supported.")
    return layers


def base_model(network: Any) -> nn.Module:
    """The encoder under a head."""
    return getattr(network, "base_model", network)
