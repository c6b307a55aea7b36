"""Teachers that do not learn."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_kd.checks import check_network
from lit_kd.models.compiled import unwrapped


class FrozenTeacher(nn.Module):
    """A network that only gives targets: no gradient, always in eval mode, absent from every checkpoint.

    ``train()`` of a parent does not wake it, so dropout stays off and batch-norm statistics stay bit-identical.
    Its ``state_dict`` is empty and a strict ``load_state_dict`` of a parent does not miss its keys: the teacher
    comes from its own file each time, which is the only copy. ``self.module`` is the network itself.

    Args:
        module: the trained network. It is frozen in place.

    Example:
        >>> teacher = FrozenTeacher(nn.Linear(3, 2))
        >>> teacher.train().training, len(teacher.state_dict()), teacher(torch.ones(1, 3)).requires_grad
        (False, 0, False)
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        check_network(module=module)
        self.module = unwrapped(module).requires_grad_(False)
        self.eval()
        self._prefix = ""
        self.register_load_state_dict_post_hook(_forgive_missing_teacher)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output, without a graph (``no_grad``: inference tensors could not enter a loss)."""
        return self.module(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the network in place, as its taps and exports know it."""
        self.module.compile(*args, **kwargs)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in eval mode, whatever ``mode`` says."""
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing."""
        return {} if destination is None else destination

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._prefix = prefix  # torch tells it only here; the post hook below sees the whole tree's keys


def _forgive_missing_teacher(teacher: nn.Module, incompatible: Any) -> None:
    assert isinstance(teacher, FrozenTeacher)
    kept = [key for key in incompatible.missing_keys if not key.startswith(teacher._prefix)]
    incompatible.missing_keys[:] = kept
