"""The memory that tensors take, counted tensor by tensor as they come and go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Within it, counts the bytes of all tensors that come to be, as long as they live."""

    def __init__(self, known: Iterable[torch.Tensor] = (), shapes: Iterable[torch.Size] = ()) -> None:
        """Those `known` count as nothing, nor do new ones of these `shapes`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        """The most so far, in bytes."""
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self._shapes = frozenset(shapes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.shape not in self._shapes:
                self.count(tensor)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        """Count it from here on, as long as it lives; several that share their memory are one."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def alive() -> list[torch.Tensor]:
    """The tensors that are there: those that Python knows of, and their gradients."""
    # By type: to ask some objects for their class is to wake them.
    known = (each for each in gc.get_objects() if issubclass(type(each), torch.Tensor))
    found: list[torch.Tensor] = [tensor for tensor in known if tensor.device.type != "meta"]
    return found + [tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None]
