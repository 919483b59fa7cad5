"""Parameters with all their elements, also where ZeRO-3 spreads them over processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def whole(*parameters: torch.Tensor) -> Iterator[None]:
    """Within it, the parameters are whole, for reading; every process must enter it with the same ones."""
    spread = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not spread:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(spread):
        yield


def copied(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole copy on the CPU) of every tensor, one at a time: all at once, a large model would not fit."""
    for name, tensor in tensors.items():
        with whole(tensor):
            yield name, tensor.detach().to("cpu", copy=True)


@contextmanager
def runnable(model: torch.nn.Module) -> Iterator[None]:
    """Within it, a model that is spread by ZeRO-3 runs before DeepSpeed takes it, a module at a time whole.

    Every process must run it as often.
    """
    hooks = []
    for module in model.modules():
        if any(hasattr(parameter, "ds_id") for parameter in module.parameters(recurse=False)):
            stack = ExitStack()

            def collect(module: torch.nn.Module, *_: Any, stack: ExitStack = stack) -> None:
                stack.enter_context(whole(*module.parameters(recurse=False)))

            def release(*_: Any, stack: ExitStack = stack) -> None:
                stack.close()

            hooks += [module.register_forward_pre_hook(collect), module.register_forward_hook(release)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
