"""Bytes of the storages that operators allocate: how many are alive at once, and where the most were."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Live(TorchDispatchMode):
    """`peak`: most bytes at once of storages that operators made inside and that were not yet freed."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        """Key -> bytes; 0 for a storage that was there before."""
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for tensor in tree_iter((args, kwargs)):
            self._see(tensor, made=False)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            self._see(tensor, made=True)
        return out

    def _see(self, tensor: Any, made: bool) -> None:
        if not isinstance(tensor, Tensor) or storage_key(tensor) in self.alive:
            return
        storage = tensor.untyped_storage()
        self.alive[storage_key(tensor)] = storage.nbytes() if made else 0
        weakref.finalize(storage, self._gone, storage_key(tensor))
        self.now += self.alive[storage_key(tensor)]
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def storages(tensors: Any) -> dict[int, int]:
    """Key of each distinct storage -> bytes."""
    return {storage_key(t): t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor) and t.numel()}


def optimizer_tensors(optimizer: Any) -> list[Tensor]:
    """All that a megatron optimizer keeps: moments and masters."""
    found = []
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for state in part.optimizer.state.values():
            found += [t for t in state.values() if isinstance(t, torch.Tensor)]
        for group in part.optimizer.param_groups:
            found += group["params"]
    return found
