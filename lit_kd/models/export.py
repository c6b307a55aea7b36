"""A trained network as files that anyone can read: safetensors, JSON and a model card."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from lit_kd.files import filling, replacing
from lit_kd.models.adapter import merged, whole_state
from lit_kd.models.card import CARD, Origin, adapter_card, hub_name, model_card
from lit_kd.models.checkpoint import load_checkpoint
from lit_kd.models.factory import Normalize, VisionModel, vision_model
from lit_kd.models.text import find_tokenizer

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def save_exported(
    network: nn.Module, folder: str | Path, details: dict[str, Any] | None = None, origin: Origin | None = None
) -> Path:
    """Write ``model.safetensors``, ``model.json`` (architecture, input statistics, ``details``) and a model card.

    The card, ``README.md``, is in Hugging Face's format and says what ``origin`` (:class:`lit_kd.models.Origin`) knows;
    what it does not, the card calls unknown. It is written anew each time.

    A network of Hugging Face's is written as ``AutoModel.from_pretrained(folder)`` reads it, with its tokenizer if it
    has a ``tokenizer_path``; ``model.json`` stands beside. One with a LoRA adapter is written with the adapter merged
    into the weights, and the adapter alone, as peft reads it, in the folder ``adapter``.

    Under a sharding strategy every rank has to call it; rank 0 writes.

    Args:
        network: any; only those of :func:`lit_kd.models.vision_model` and of Hugging Face can be built again from it.
        folder: made if it is missing.
        details: what else ``model.json`` should tell, such as metrics.
        origin: what the card tells of the network: method, data, settings; None: nothing is known.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    with whole_state(network):
        state = get_model_state_dict(network, options=options)  # gathers shards, drops the names of wrappers
    _write(network, state, Path(folder), details or {}, origin or Origin())
    return Path(folder)


@rank_zero_only
def _write(network: nn.Module, state: dict[str, Any], folder: Path, details: dict[str, Any], origin: Origin) -> None:
    origin = replace(origin, base_model=origin.base_model or hub_name(getattr(network, "weights_from", None)))
    if hasattr(network, "get_base_model"):  # a PeftModel
        with filling(folder / "adapter") as temporary:
            network.save_pretrained(temporary, state_dict=state)  # type: ignore[operator]
        _write_text(folder / "adapter" / CARD, adapter_card(origin))  # peft's own names the base by its path here
        network = merged(network, state)
        state = network.state_dict()
    description: dict[str, Any] = {
        "class": f"{type(network).__module__}.{type(network).__qualname__}",
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    if isinstance(network, VisionModel):
        description["architecture"] = network.architecture
        description["input"] = {"range": [0, 1], "layout": "NCHW"}
        if isinstance(network.normalize, Normalize):  # in the network itself: here for readers
            description["input"]["mean"] = network.normalize.mean.flatten().tolist()
            description["input"]["std"] = network.normalize.std.flatten().tolist()
    tokenizer = None
    if hasattr(network, "save_pretrained"):
        tokenizer = _write_pretrained(network, state, folder)
    else:
        with replacing(folder / WEIGHTS) as temporary:
            save_file({key: value.contiguous() for key, value in state.items()}, temporary)
    _write_text(folder / DESCRIPTION, json.dumps({**description, **details}, indent=2) + "\n")
    _write_text(folder / CARD, model_card(network, origin, tokenizer))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _write_pretrained(network: Any, state: dict[str, Any], folder: Path) -> Any:
    """Weights, config and tokenizer as transformers' ``from_pretrained`` reads them, each file whole or absent.

    Returns:
        The tokenizer; None if there is none.
    """
    with filling(folder) as temporary:
        network.save_pretrained(temporary, state_dict=state)
        path = getattr(network, "tokenizer_path", None)
        tokenizer = find_tokenizer(path) if path is not None else None
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
    return tokenizer


def load_exported(folder: str | Path) -> VisionModel:
    """The network that :func:`save_exported` wrote, in eval mode.

    Args:
        folder: of ``model.safetensors`` and ``model.json``.

    Raises:
        FileNotFoundError: the folder lacks one of the two files.
        ValueError: the network was not built by ``vision_model``: build it and use ``load_checkpoint`` on the weights.
    """
    folder = Path(folder)
    for name in (WEIGHTS, DESCRIPTION):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: it is not an exported network.")
    description = json.loads((folder / DESCRIPTION).read_text())
    if "architecture" not in description:
        raise ValueError(
            f"{folder} holds a {description['class']}, which no factory of ours builds: "
            f"build it and call load_checkpoint(network, {str(folder / WEIGHTS)!r})."
        )
    model = vision_model(**description["architecture"])
    load_checkpoint(model, folder / WEIGHTS)
    return model.eval()
