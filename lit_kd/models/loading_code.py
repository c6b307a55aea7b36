"""Code that loads an exported network, as its model card shows it: it runs in the exported folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

from lit_kd.models.factory import VisionModel


@dataclass(frozen=True)
class Loading:
    """The library that loads a network, its task in the hub's words (None: unknown), and Markdown with code."""

    loader: str
    task: str | None
    text: str


def loading(network: nn.Module, tokenizer: Any = None) -> Loading:
    """How to load a network that ``save_exported`` has written."""
    if isinstance(network, VisionModel):
        task = "image-classification" if network.num_classes else "image-feature-extraction"
        return Loading("lit_kd", task, _vision(network))
    if hasattr(network, "save_pretrained"):
        return _transformers(network, tokenizer)
    return Loading("pytorch", None, _foreign(network))


_FOLDER = "In this folder (from the hub: `huggingface_hub.snapshot_download`):"


def _vision(network: VisionModel) -> str:
    size = (network.default_cfg.get("input_size") or (3, 224, 224))[1:]
    image = f"image = torch.rand(1, {network.architecture['in_chans']}, {size[0]}, {size[1]})  # pixels in [0, 1]"
    output = "logits" if network.num_classes else "features"
    ours = f"""
import torch
from lit_kd.models import load_exported

{image}
network = load_exported(".")
{output} = network(image)
"""
    text = f"{_FOLDER}\n{_block(ours)}"
    plain = network.architecture["normalize"] and not network.architecture["cifar_stem"]
    if not plain or not timm.models.model_entrypoint(network.architecture["name"]).__module__.startswith("timm."):
        return text
    shape = {name: network.architecture[name] for name in ("num_classes", "in_chans")}
    arguments = ", ".join(
        f"{name}={value!r}" for name, value in {**shape, **network.architecture["model_kwargs"]}.items()
    )
    without = f"""
import timm
import torch
from safetensors.torch import load_file

{image}
state = load_file("model.safetensors")
network = timm.create_model({network.architecture["name"]!r}, {arguments}).eval()
network.load_state_dict({{n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}})
{output} = network((image - state["normalize.mean"]) / state["normalize.std"])
"""
    return f"{text}\n\nWithout lit_kd:\n{_block(without)}"


def _transformers(network: Any, tokenizer: Any) -> Loading:
    from transformers.models.auto import modeling_auto as auto

    kinds = {
        "AutoModelForCausalLM": (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "text-generation"),
        "AutoModelForSequenceClassification": (
            auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            "text-classification",
        ),
        "AutoModelForQuestionAnswering": (auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, "question-answering"),
    }
    found = [(f, task) for f, (names, task) in kinds.items() if type(network).__name__ in names.values()]
    factory, task = found[0] if found else ("AutoModel", "feature-extraction")
    inputs = 'inputs = {"input_ids": torch.tensor([[0, 1, 2]])}  # ids: no tokenizer was exported'
    if tokenizer is not None:
        inputs = 'inputs = tokenizer("One sentence.", return_tensors="pt")'
        if factory == "AutoModelForCausalLM" and tokenizer.chat_template:
            chat = 'chat = [{"role": "user", "content": "One question?"}]'
            ask = 'chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"'
            inputs = f"{chat}\ninputs = tokenizer.apply_chat_template({ask})"
    use = "output = network(**inputs)"
    if factory == "AutoModelForCausalLM":
        use = "output = network.generate(**inputs, max_new_tokens=20)"
        use += "\ntext = tokenizer.decode(output[0])" if tokenizer is not None else ""
    names, load = [factory], [f'network = {factory}.from_pretrained(".")']
    if tokenizer is not None:
        names, load = [*names, "AutoTokenizer"], [*load, 'tokenizer = AutoTokenizer.from_pretrained(".")']
    head = ([] if tokenizer is not None else ["import torch"]) + [f"from transformers import {', '.join(names)}", ""]
    code = "\n".join([*head, *load, inputs, use])
    where = 'In this folder, or from the hub with the name of this repository in the place of `"."`:'
    return Loading("transformers", task, f"{where}\n{_block(code)}")


def _foreign(network: nn.Module) -> str:
    kind = f"{type(network).__module__}.{type(network).__qualname__}"
    code = """
from safetensors.torch import load_file


def load(network):
    \"\"\"Give a network that was built as for the training these weights.\"\"\"
    network.load_state_dict(load_file("model.safetensors"))
    return network.eval()
"""
    return f"The files hold weights, not the class `{kind}` and its arguments. {_FOLDER}\n{_block(code)}"


def _block(code: str) -> str:
    return f"\n```python\n{code.strip()}\n```"
