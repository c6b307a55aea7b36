"""What FSDP2 has to leave behind each step."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class ShardedApart(Callback):
    """Fails unless, after each step, student and teacher are units of their own and nothing of them is gathered.

    Args:
        networks: names of the module's children that hold them.
    """

    def __init__(self, *networks: str) -> None:
        self.networks = networks

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        children = dict(pl_module.named_children())
        for name in self.networks:
            assert isinstance(children[name], FSDPModule), name
            parameters = dict(children[name].named_parameters())
            assert parameters and not [key for key, value in parameters.items() if not isinstance(value, DTensor)], name
