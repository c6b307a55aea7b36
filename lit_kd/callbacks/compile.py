"""Compilation and memory format of the networks of any method, by a line in the config."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_kd.checks import check_list

NETWORKS = ("student", "network", "teacher")  # names that our methods give to theirs


class CompileNetworks(Callback):
    """Compiles student and teacher with ``torch.compile``, each by itself and in place.

    Names of weights stay what they are, so checkpoints and exports of compiled and plain runs load into each other.
    Losses, heads over the vocabulary and logging stay as they are. Of language models and of MiniLM's encoders, which
    are read at inner states, the layers are compiled; generation runs them uncompiled.

    Args:
        parts: which attributes of the module; None: its student or network, and its teacher.
        backend: see ``torch.compile``.
        mode: likewise.
        dynamic: likewise; None: a size that changes is compiled for once more, and then for all sizes.

    Raises:
        ValueError: at setup, a part that the module does not have, or none at all.
    """

    def __init__(
        self,
        parts: Sequence[str] | None = None,
        backend: str | Callable[..., Any] = "inductor",
        mode: str | None = None,
        dynamic: bool | None = None,
    ) -> None:
        check_list(parts=parts or [])
        self.parts = parts
        self.settings: dict[str, Any] = {"backend": backend, "mode": mode, "dynamic": dynamic}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile; the graphs are made at the first call."""
        children = dict(pl_module.named_children())
        names = [name for name in NETWORKS if name in children] if self.parts is None else self.parts
        for name in names:
            part: Any = getattr(pl_module, name, None)
            if not any(part is child for child in children.values()):  # metrics equal anything
                raise ValueError(
                    f"parts={list(self.parts or ())} names {name!r}, and {type(pl_module).__name__} has "
                    f"{', '.join(children)}: choose among these."
                )
            part.compile(**self.settings)
        if not names:
            raise ValueError(
                f"{type(pl_module).__name__} has none of {', '.join(NETWORKS)}: name in parts what to compile."
            )


class ChannelsLast(Callback):
    """Keeps the weights of all convolutions in the memory format that is fast for images.

    On a GPU it pays under mixed precision, on a CPU always (docs/benchmarks.md). Numbers agree but for rounding.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Convert; convolutions pass the format on to their outputs."""
        pl_module.to(memory_format=torch.channels_last)
