"""Causal language models of transformers, whole or with a LoRA adapter, and their states that predict completions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from lit_kd.checks import check_choice
from lit_kd.files import pretrained_at
from lit_kd.models.adapter import with_adapter
from lit_kd.models.compiled import check_not_compiled
from lit_kd.models.modes import eval_mode
from lit_kd.models.text import read_config, recompute_layers

T = TypeVar("T")
_DTYPES = ("float32", "bfloat16", "float16")


def causal_lm(
    path: str,
    lora: dict[str, Any] | None = None,
    init: Literal["pretrained", "random", "layers"] = "pretrained",
    config: dict[str, Any] | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """A causal language model by folder, hub name or .gguf file, as transformers' ``AutoModelForCausalLM`` builds it.

    With ``lora`` the network is frozen but for an adapter, and a checkpoint holds the adapter alone; the rest comes
    from ``path`` each time. Its attribute ``tokenizer_path`` is ``path``: an export takes the tokenizer from there.
    ``weights_from`` is ``path``, too, unless they are random: the card of an export names it.

    Args:
        path: of the pretrained network.
        lora: arguments of ``peft.LoraConfig``, e.g. ``{r: 32, lora_alpha: 32, target_modules: all-linear}``.
        init: "pretrained": the weights of ``path``; "random": only its architecture; "layers": embeddings, head and
            evenly spaced layers of ``path`` (0, 2, 4, 7, 9, 11 for 6 of 12), as many as ``config`` says.
        config: entries of the configuration to change, such as ``num_hidden_layers``.
        dtype: of the weights. Half precision is for what is frozen: small steps are lost in it. peft keeps adapters in
            float32 in any case.
        gradient_checkpointing: recompute the layers in the backward pass (non-reentrant).

    Raises:
        ValueError: an unknown init, dtype, entry of the configuration or of the adapter's; "layers" with another width
            or more layers; an architecture without known decoder and head.
        ImportError: ``lora`` without peft.
        FileNotFoundError: there is no such network.
    """
    from transformers import AutoModelForCausalLM

    check_choice(("pretrained", "random", "layers"), init=init)
    check_choice(_DTYPES, dtype=dtype)
    settings, pretrained = read_config(path, config or {}), read_config(path, {})
    depth = pretrained.num_hidden_layers
    chosen = list(range(settings.num_hidden_layers))
    if init == "layers":
        chosen = torch.linspace(0, depth - 1, settings.num_hidden_layers).round().int().tolist()
    for name, value in settings.to_dict().items():  # layer_types and its like: an entry for each layer
        if "layer" in name and isinstance(value, list) and len(value) == depth and name not in (config or {}):
            setattr(settings, name, [value[i] for i in chosen if i < depth])
    network = _load(path, settings) if init == "pretrained" else AutoModelForCausalLM.from_config(settings)
    decoder_and_head(network)
    if init == "layers":
        _copy_layers(network, _load(path, pretrained), chosen)
    for parameter in network.parameters():  # not buffers: the frequencies of rotary positions stay float32
        parameter.data = parameter.data.to(getattr(torch, dtype))
    if lora is not None:
        network = with_adapter(network, lora)
    if gradient_checkpointing:
        recompute_layers(whole_network(network))
    network.tokenizer_path, network.weights_from = path, None if init == "random" else path
    return network


def _load(path: str, settings: Any) -> Any:
    import transformers

    where = pretrained_at(path)
    extra: dict[str, Any] = {}
    if "gguf_file" in where and hasattr(transformers, "GgufConfig"):  # older releases always make plain weights
        extra["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return transformers.AutoModelForCausalLM.from_pretrained(**where, config=settings, **extra)


@torch.no_grad()
def _copy_layers(student: Any, teacher: Any, chosen: list[int]) -> None:
    """Give the student the teacher's embeddings, head and chosen layers."""
    ours, theirs = student.config, teacher.config
    if ours.hidden_size != theirs.hidden_size or ours.num_hidden_layers > theirs.num_hidden_layers:
        raise ValueError(
            f'init="layers" copies whole layers: the student ({ours.num_hidden_layers} x {ours.hidden_size}) needs the '
            f"width of the pretrained network ({theirs.num_hidden_layers} x {theirs.hidden_size}) and no more layers."
        )
    name, own = _layers(student)
    _, other = _layers(teacher)
    for layer, source in zip(own, chosen, strict=True):
        layer.load_state_dict(other[source].state_dict())
    rest = {key: value for key, value in teacher.state_dict().items() if not key.startswith(f"{name}.")}
    student.load_state_dict(rest, strict=False)


def _layers(network: Any) -> tuple[str, nn.ModuleList]:
    depth = network.config.num_hidden_layers
    for name, part in network.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == depth:
            return name, part
    raise ValueError(
        f"{type(network).__name__} has no list of {depth} layers, which init='layers' copies and compilation needs."
    )


def whole_network(network: Any) -> Any:
    """The network of transformers, in which peft has put its adapter; without an adapter itself."""
    return network.get_base_model() if hasattr(network, "get_base_model") else network


def decoder_and_head(network: Any) -> tuple[Any, nn.Module]:
    """The part of a causal network that gives states, and the output layer that makes logits of them.

    Raises:
        ValueError: it is not built like that.
    """
    base = whole_network(network)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    encoder_decoder = getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    if decoder is None or decoder is base or head is None or encoder_decoder:
        raise ValueError(
            f"{type(base).__name__} is not a causal network with a decoder and an output layer that transformers' "
            "get_decoder() and get_output_embeddings() find: give one of AutoModelForCausalLM's."
        )
    return decoder, head


class CompletionStates(nn.Module):
    """The states of a causal network that predict the tokens of completions, and its head.

    The state at position t predicts the token at t + 1: of a prompt of P tokens and a completion of R, these are the
    rows P - 1 to P + R - 2. Only here are they shifted. Prompts and padding never pass the head.

    Args:
        network: as :func:`causal_lm` builds it. Inside ``network.disable_adapter()`` the states are those of the
            network without its adapter.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        check_not_compiled(network)
        decoder_and_head(network)
        self.network = network
        self._packs = False  # whether it was seen to keep packed texts apart

    def forward(
        self,
        read: Callable[[Tensor, nn.Module], T],
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        position_ids: Tensor | None = None,
    ) -> T:
        """What ``read`` makes of the states and the head.

        Args:
            read: gets rows (N, H), row-major over the batch, as :func:`completion_labels` gives the tokens they
                predict, and the head, a module from states (..., H) to float32 logits (..., V). It runs in the forward
                since FSDP2 has the weights of the head gathered only there.
            input_ids: int64 (B, T).
            attention_mask: 1 for tokens, 0 for padding on either side, (B, T).
            completion_mask: True for tokens of the completion, bool (B, T).
            position_ids: of rows that hold several texts: the place of each token in its text, int64 (B, T), so 0
                where a text begins, and 0 for padding. No token sees another text's.

        Raises:
            ValueError: with ``position_ids``, a network that does not keep texts apart.
        """
        decoder, output = decoder_and_head(self.network)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if position_ids is not None:
            self._see_packing(decoder, position_ids)
            inputs |= {"attention_mask": _apart(decoder, position_ids), "position_ids": position_ids}
        elif "position_ids" in inspect.signature(decoder.forward).parameters:
            inputs["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)  # so the side of the padding is free
        found = decoder(**inputs)
        head = _Head(whole_network(self.network), decoder, output, type(found))
        return read(found.last_hidden_state[:, :-1][completion_mask[:, 1:]], head)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile each layer of the decoder: one graph serves all layers of a kind, and the head stays as it is."""
        for layer in _layers(whole_network(self.network))[1]:
            layer.compile(*args, **kwargs)

    def _see_packing(self, decoder: Any, position_ids: Tensor) -> None:
        """Raise a ValueError unless the network keeps packed texts apart, at first by a try: some ignore the mask."""
        window = getattr(decoder.config, "sliding_window", None)
        if window is not None and int(position_ids.max()) >= window:
            raise ValueError(
                f"Packed rows hold a text of {int(position_ids.max()) + 1} tokens, over the sliding window of {window} "
                f"tokens of {type(decoder).__name__}, which a mask of packed texts lacks: train without packing."
            )
        if self._packs:
            return
        kind = decoder.config._attn_implementation
        if kind not in ("sdpa", "eager"):
            raise ValueError(
                f"Packed rows need the attention sdpa or eager, not {kind}: set attn_implementation, or train without "
                "packing."
            )
        if "position_ids" not in inspect.signature(decoder.forward).parameters or self._leaks(decoder):
            raise ValueError(
                f"{type(decoder).__name__} does not keep packed texts apart, as its layers or positions take no mask "
                "of texts: train without packing."
            )
        self._packs = True

    @torch.no_grad()
    def _leaks(self, decoder: Any) -> bool:
        """Whether the states of the second of two packed texts change with the first one."""
        device = next(decoder.parameters()).device
        positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)
        inputs = {"attention_mask": _apart(decoder, positions), "position_ids": positions, "use_cache": False}
        with eval_mode(self.network):
            one, other = (
                decoder(input_ids=torch.tensor([[first] * 3 + [1, 2, 1]], device=device), **inputs)
                .last_hidden_state[:, 3:]
                .float()
                for first in (1, 2)
            )
        return bool((one - other).norm() > 1e-2 * one.norm())  # not 0: experts may sum in another order


def _apart(decoder: Any, position_ids: Tensor) -> Tensor:
    """The mask (B, 1, T, T) by which a token sees itself and what is before it in its own text.

    Both forms are handed to the attention as they are; that of transformers from positions alone is there only in some
    releases and for some networks.
    """
    text = (position_ids == 0).cumsum(1)
    seen = (text[:, :, None] == text[:, None]).tril()[:, None]
    if decoder.config._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, float("-inf"))  # eager adds it


def completion_labels(input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """The completions' tokens, int64 (N,), in the order of the states that predict them.

    Args:
        input_ids: (B, T).
        completion_mask: (B, T), True for tokens of a completion.
    """
    return input_ids[:, 1:][completion_mask[:, 1:]]


class _Head(nn.Module):
    """From last states to logits as the network's own forward does it: with its scales, soft-capping and bias.

    The decoder is left out of that forward: it returns the given states. Parameters are those of the output layer.
    """

    def __init__(self, network: Any, decoder: Any, output: nn.Module, kind: Any) -> None:
        super().__init__()
        self.output = output
        self._others = network, decoder, kind  # in a tuple, as a part would be registered

    def forward(self, states: Tensor) -> Tensor:
        network, decoder, kind = self._others
        # A shadow on this one object, for the time of the call.
        decoder.forward = lambda *args, **kwargs: kind(last_hidden_state=states.reshape(1, -1, states.shape[-1]))
        try:
            logits = network(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=states.device)).logits
        finally:
            del decoder.forward
        return logits.float().view(*states.shape[:-1], logits.shape[-1])
