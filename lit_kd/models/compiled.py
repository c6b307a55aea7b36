"""Networks that ``torch.compile`` has wrapped."""

from typing import Any

from torch import nn


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside of ``torch.compile(network)``, compiled in place; any other network as it is.

    The wrapper would put ``_orig_mod.`` before the names of all weights and parts: checkpoints of compiled and plain
    runs would not load into each other, and taps, stages and exports would not find what they name.
    """
    if not _is_wrapper(network):
        return network
    wrapper: Any = network
    inner: Any = wrapper._orig_mod
    inner._compiled_call_impl = wrapper.dynamo_ctx(inner._call_impl)  # as nn.Module.compile does it
    return inner


def check_not_compiled(network: nn.Module) -> None:
    """Raise a ValueError where a network is compiled as a whole though only parts of it are called."""
    if _is_wrapper(network) or network._compiled_call_impl is not None:
        raise ValueError(
            f"{type(getattr(network, '_orig_mod', network)).__name__} is compiled as a whole, but here its layers are "
            "called one by one: give it as it is, and compile it by the callback CompileNetworks."
        )


def _is_wrapper(network: nn.Module) -> bool:
    return "_orig_mod" in network._modules  # to ask for the class would import the compiler: a second
