"""Text encoders of Hugging Face transformers: pretrained, of any size at random, or from layers of a larger one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_kd.checks import check_choice, check_whole_or_none
from lit_kd.files import pretrained_at
from lit_kd.models.self_attention import attention_paths

TextBatch = Mapping[str, Any]  # what the tokenizer returns, targets, and `index`; of problems, prompts and golds
_TARGETS = {"labels", "start_positions", "end_positions"}  # with them a network would compute a loss of its own
_HEADS = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "question_answering": "AutoModelForQuestionAnswering",
}


def text_encoder(
    path: str,
    head: Literal["sequence_classification", "question_answering"] | None = None,
    num_labels: int | None = None,
    init: Literal["pretrained", "random", "layers"] = "pretrained",
    config: dict[str, Any] | None = None,
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """A text encoder by the folder or hub name of a pretrained one, as transformers' ``AutoModel`` builds it; float32.

    A student of L layers of width H is ``init="random"`` with
    ``config={"num_hidden_layers": L, "hidden_size": H, "intermediate_size": 4 * H}``: the rest, vocabulary and number
    of heads among it, is that of ``path``. Its attribute ``tokenizer_path`` is ``path``: an export takes the tokenizer
    from there. ``weights_from`` is ``path``, too, unless they are random: the card of an export names it.

    Args:
        path: of the pretrained encoder.
        head: with a classifier or with start and end logits on top; None: the encoder alone.
        num_labels: classes of ``sequence_classification``, 1 for a regression; None: what the config of ``path`` says.
        init: "pretrained": the weights of ``path``; "random": only its architecture; "layers": embeddings and evenly
            spaced layers of ``path`` (0, 2, 4, 7, 9, 11 for 6 of 12), for a student of fewer layers and equal width.
        config: entries of the configuration to change.
        gradient_checkpointing: recompute the layers in the backward pass (non-reentrant).

    Raises:
        ValueError: an unknown head, or entry of the configuration; "layers" with another width or more layers.
        FileNotFoundError: there is no such encoder.
    """
    import transformers

    check_choice((*_HEADS, None), head=head)
    check_choice(("pretrained", "random", "layers"), init=init)
    check_whole_or_none(num_labels=num_labels)
    factory = getattr(transformers, "AutoModel" if head is None else _HEADS[head])
    settings = read_config(path, {**(config or {}), **({} if num_labels is None else {"num_labels": num_labels})})
    if getattr(settings, "layer_types", None):  # ModernBERT's: one for each layer of the saved configuration
        settings.layer_types = settings.layer_types[: settings.num_hidden_layers]
    network = factory.from_pretrained(path, config=settings) if init == "pretrained" else factory.from_config(settings)
    if init == "layers":
        _copy_layers(network, transformers.AutoModel.from_pretrained(path))
    if gradient_checkpointing:
        recompute_layers(network)
    network.tokenizer_path, network.weights_from = path, None if init == "random" else path
    return network.float()  # transformers 5 keeps the precision of the file, and half precision does not train


def read_config(path: str, changes: Mapping[str, Any]) -> Any:
    """The configuration of a pretrained network, with some of its entries changed."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(**pretrained_at(path))
    except (OSError, ValueError) as error:
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise FileNotFoundError(
            f"path={path!r} cannot be loaded ({reason}): give a folder with config.json, or the name of a model on the "
            "Hugging Face hub."
        ) from error
    for name, value in changes.items():
        if not hasattr(settings, name):
            raise ValueError(f"config names {name!r}, which a {settings.model_type} configuration does not have.")
        setattr(settings, name, value)
    return settings


def recompute_layers(network: Any) -> None:
    """Switch gradient checkpointing on, in the form that also works with frozen embeddings."""
    enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # the second name is that of transformers before 5.20


@torch.no_grad()
def _copy_layers(student: Any, teacher: Any) -> None:
    """Give the student the teacher's embeddings and evenly spaced layers."""
    paths = attention_paths(teacher)
    ours, theirs = student.config, teacher.config
    if paths.shared or ours.hidden_size != theirs.hidden_size or ours.num_hidden_layers > theirs.num_hidden_layers:
        raise ValueError(
            f'init="layers" copies whole layers: the student ({ours.num_hidden_layers} x {ours.hidden_size}) needs the '
            f"width of the pretrained encoder ({theirs.num_hidden_layers} x {theirs.hidden_size}), no more layers, and "
            "layers that are not shared."
        )
    own, other = (one.base_model.get_submodule(paths.layers) for one in (student, teacher))
    chosen = torch.linspace(0, len(other) - 1, len(own)).round().int().tolist()
    for layer, source in zip(own, chosen, strict=True):
        layer.load_state_dict(other[source].state_dict())
    rest = {name: value for name, value in teacher.state_dict().items() if not name.startswith(f"{paths.layers}.")}
    student.base_model.load_state_dict(rest, strict=False)


def known_inputs(network: Any, batch: TextBatch) -> dict[str, Tensor]:
    """Those tensors of a batch that the network's forward names: DistilBERT, say, knows no ``token_type_ids``.

    They are also left out for networks of one type, as RoBERTa, where the second type of another's tokenizer would be
    an IndexError.
    """
    named = inspect.signature(network.forward).parameters.keys() - _TARGETS
    if getattr(getattr(network, "config", None), "type_vocab_size", 2) < 2:
        named = named - {"token_type_ids"}
    inputs = {name: value for name, value in batch.items() if name in named}
    if not inputs:
        raise ValueError(f"forward of {type(network).__name__} names none of the batch's tensors {sorted(batch)}.")
    return inputs


def longest_sequence(network: nn.Module) -> int | None:
    """Tokens that a network has positions for; None: any number."""
    config: Any = getattr(network, "config", None)
    table = getattr(config, "max_position_embeddings", None)
    if table is None or not getattr(config, "position_biased_input", True):
        return None
    # RoBERTa and its kin number positions from behind that of the padding.
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return int(table - offset)


def find_tokenizer(path: str) -> Any:
    """The tokenizer of a folder, hub name or .gguf file, or None, with a warning."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(**pretrained_at(path))
        if len(tokenizer) > len(tokenizer.all_special_ids):  # transformers 5 makes an empty one of a configuration
            return tokenizer
        reason = "it would know special tokens only"
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
    rank_zero_warn(f"{path} holds no tokenizer ({reason}), so ids are not compared and none is exported.")
    return None


def check_tokenizers(**readers: Any) -> None:
    """Raise a ValueError unless a token id means the same to two networks, or to a network and its data.

    Vocabularies are compared where both say where theirs is (``tokenizer_path``), else the networks' sizes of them.
    """
    (first, second), names = readers.values(), " and ".join(readers)
    own, theirs = getattr(first, "tokenizer_path", None), getattr(second, "tokenizer_path", None)
    if own is not None and own == theirs:
        return
    tokenizers = [None if path is None else find_tokenizer(path) for path in (own, theirs)]
    vocabularies = [None if tokenizer is None else tokenizer.get_vocab() for tokenizer in tokenizers]
    what = f"{own} and {theirs}"
    if None in vocabularies:
        vocabularies = [getattr(getattr(one, "config", None), "vocab_size", None) for one in (first, second)]
        what = f"{vocabularies[0]} and {vocabularies[1]} tokens"
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise ValueError(
            f"{names.capitalize()} have different tokenizers ({what}): they are compared token by token, so take "
            "the teacher's tokenizer for all."
        )
