"""Weights from any file into a network, strictly."""

import hashlib
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_kd.checks import check_network

logger = logging.getLogger(__name__)

_NETWORK_PREFIXES = ("student.", "network.", "model.")  # where trained networks live in Lightning checkpoints


def load_checkpoint(network: nn.Module, path: str | Path) -> None:
    """Load a Lightning checkpoint of ours, a plain state dict, or safetensors into ``network``, strictly.

    Prefixes (``student.``, ``network.``, ``model.``, ``module.``, ``_orig_mod.``) are stripped; of a Lightning
    checkpoint only the trained network is taken. Files are read with ``weights_only=True``.

    Args:
        network: changed in place.
        path: of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint, or its keys or shapes do not fit; the sentence lists them.
    """
    check_network(network=network)
    path = Path(path)
    found = read_state_dict(path)
    wanted = network.state_dict()
    # A file of the bare backbone fits a network that normalises its input, as long as the constants are its own.
    if all(key.startswith(("normalize.", "backbone.")) for key in wanted):
        if not any(key.startswith("backbone.") for key in found):
            found = {f"backbone.{key}": value for key, value in found.items()}
        found = {**{key: value for key, value in wanted.items() if key.startswith("normalize.")}, **found}
    reshaped = [
        f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
        for key in wanted.keys() & found.keys()
        if found[key].shape != wanted[key].shape
    ]
    # Not strict: the sentence below is ours, and batch norms of old files lack num_batches_tracked, as torch allows.
    fit = network.load_state_dict({} if reshaped else found, strict=False)
    complaints = [_listing("of another shape", reshaped)]
    if not reshaped:
        complaints += [_listing("missing", fit.missing_keys), _listing("unexpected", fit.unexpected_keys)]
    if any(complaints):
        raise ValueError(f"{path} does not fit {type(network).__name__}: {'; '.join(filter(None, complaints))}.")
    logger.info("loaded %s (sha256 %s...)", path, hashlib.sha256(path.read_bytes()).hexdigest()[:8])


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of one network in a file, under the names which that network itself gives them."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, perhaps a sharded checkpoint: join it first with "
            "`python -m lightning.pytorch.utilities.consolidate_checkpoint`."
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    content = _read(path)
    state = content.get("state_dict", content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors.")
    if "pytorch-lightning_version" in content:
        prefix = next((p for p in _NETWORK_PREFIXES if any(key.startswith(p) for key in state)), "")
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}  # torch.compile
    wrappers = ("module.", *_NETWORK_PREFIXES)  # "module.": DataParallel
    while wrapper := next((w for w in wrappers if state and all(key.startswith(w) for key in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a checkpoint: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle.UnpicklingError with advice to switch the safety off
        raise ValueError(f"{path} holds more than tensors and plain values, or is not a checkpoint.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content


def _listing(what: str, keys: list[str], limit: int = 5) -> str:
    names = sorted(keys)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{what}: {', '.join(names[:limit])}{more}" if names else ""
