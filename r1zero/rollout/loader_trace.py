"""Finds out where an engine keeps each weight, so that parts of it can be written there without a whole tensor.

vLLM's loaders split, fuse, repeat and distribute tensors by rules of their own. Here they run once on tensors without
content, and the copies that they would make are recorded instead of made.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Named = tuple[str, tuple[int, ...]]
"""Name and shape of a Hugging Face tensor."""


class WriteTarget(NamedTuple):
    """Where the engine keeps one rectangle of a Hugging Face tensor."""

    corner: tuple[int, ...]
    target: Tensor
    """View of the engine's parameter, with the shape of the rectangle."""


WriteTargets = dict[str, tuple[WriteTarget, ...]]


def learn(
    load_weights: Callable[[Iterator[tuple[str, Tensor]]], Any], tensors: Iterable[Named], dtype: torch.dtype
) -> WriteTargets:
    """Returns the rectangles that the loader would copy, by Hugging Face name.

    dtype: type of the tensors that will be written. A tensor is omitted if any copy is not of a plain rectangle of it,
    because it is cast or transposed first; it must go through the loader.
    """
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        load_weights(recorder.probes(tensors, dtype))
    return {name: tuple(places) for name, places in recorder.found.items() if places and name not in recorder.odd}


def write(places: tuple[WriteTarget, ...], axis: int, first: int, tensor: Tensor) -> None:
    """Copy a part of a Hugging Face tensor to its places in the engine.

    tensor: begins at unit `first` of the axis, and is whole along the other axes.
    """
    end = first + tensor.shape[axis]
    for corner, target in places:
        begin, stop = max(first, corner[axis]), min(end, corner[axis] + target.shape[axis])
        if begin < stop:
            piece = tensor.narrow(axis, begin - first, stop - begin)
            for other, (at, size) in enumerate(zip(corner, target.shape, strict=True)):
                piece = piece if other == axis else piece.narrow(other, at, size)
            target.narrow(axis, begin - corner[axis], stop - begin).copy_(piece)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[WriteTarget]] = {}
        self.odd: set[str] = set()
        self._live: dict[int, tuple[str, Tensor]] = {}
        """Storage of the current probe -> its name, and the tensor itself, so that its storage is not reused."""

    def probes(self, tensors: Iterable[Named], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield probes: tensors on the host that are never written, so that they take no memory."""
        for name, shape in tensors:
            probe = torch.empty(shape, dtype=dtype, device="cpu")
            self._live = {_storage(probe): (name, probe)}
            yield name, probe

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        known = [a for a in args if isinstance(a, Tensor) and _storage(a) in self._live]
        if func is torch.ops.aten.copy_.default and known and known[0] is args[1]:
            self._note(*self._live[_storage(args[1])], args[1], args[0])
            return args[0]
        out = func(*args, **(kwargs or {}))
        if known and isinstance(out, Tensor) and _storage(out) not in self._live:
            self.odd.add(self._live[_storage(known[0])][0])  # the loader copied it, so its origin is lost
        return out

    def _note(self, name: str, whole: Tensor, source: Tensor, target: Tensor) -> None:
        turned = (
            source.dim() != whole.dim()
            or source.shape != target.shape
            or any(
                size > 1 and ours != theirs
                for size, ours, theirs in zip(source.shape, source.stride(), whole.stride(), strict=True)
            )
        )
        if turned:
            self.odd.add(name)
            return
        rest, corner = int(source.storage_offset()), []
        for stride in whole.stride():
            at, rest = divmod(rest, stride)
            corner.append(at)
        self.found.setdefault(name, []).append(WriteTarget(tuple(corner), target))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
