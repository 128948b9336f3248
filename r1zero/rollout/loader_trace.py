"""Where an engine keeps each weight, learnt from the engine's own loader, so that a part can be written there and no
tensor made whole.

vLLM's loaders cut, fuse, repeat and deal out tensors by rules of their own. They are run here once over tensors without
content, and the copies that they would make are written down instead of made.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Named = tuple[str, tuple[int, ...]]
"""A Hugging Face tensor's name and shape."""


class WriteTarget(NamedTuple):
    """One rectangle of a Hugging Face tensor."""

    corner: tuple[int, ...]
    target: Tensor
    """View of the engine's parameter, of the rectangle's shape."""


WriteTargets = dict[str, tuple[WriteTarget, ...]]


def learn(
    load_weights: Callable[[Iterator[tuple[str, Tensor]]], Any], tensors: Iterable[Named], dtype: torch.dtype
) -> WriteTargets:
    """What the loader would copy where. A tensor is left out where a copy is not of a rectangle of it as it stands:
    cast before, or turned; it has to go through the loader. dtype: of the tensors that will be brought."""
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        load_weights(recorder.probes(tensors, dtype))
    return {name: tuple(places) for name, places in recorder.found.items() if places and name not in recorder.odd}


def write(places: tuple[WriteTarget, ...], axis: int, first: int, tensor: Tensor) -> None:
    """Copy `tensor`, which begins at unit `first` of the axis and is whole along the others, to wherever its parts
    belong."""
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
        """Storage of a tensor that was handed out -> its name, and the tensor, so that no other takes its place."""

    def probes(self, tensors: Iterable[Named], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Tensors on the host that are never written, hence have no memory behind them."""
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
            self.odd.add(self._live[_storage(known[0])][0])  # a copy of its own, of which nothing more is known
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
        rest, corner = source.storage_offset(), []
        for stride in whole.stride():
            at, rest = divmod(rest, stride)
            corner.append(at)
        self.found.setdefault(name, []).append(WriteTarget(tuple(corner), target))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
