"""The compiled reshard, carried out: one all-to-all a round, straight from the trainer's parts to the engine's places.

Only what this rank must send or receive is staged. `pieces` yields what arrives; `stream` writes some weights where the
caller says and yields the others, whole, for an engine's own loader (which repacks them, as on the CPU). Both check a
checksum of every piece against its sender's when asked.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.model.families import Weight
from r1zero.weight_sync import rounds as planned
from r1zero.weight_sync.routes import Routes, Span, axis, need_of

Read = Callable[[Weight], Tensor]
"""The trainer's own part of a weight on this rank, in HF's orientation."""
Write = Callable[[Weight, Span, Tensor], None]
"""Takes a piece: units first .. end - 1 of the weight's axis, counted in the whole HF tensor."""


class ChecksumError(Exception):
    """A weight did not arrive as it was sent."""


@dataclass(frozen=True)
class Compiled:
    """One rank's part, ready to run. The same rounds on every rank, whether it has anything to do in them or not."""

    routes: Routes
    tasks: list[planned.Task]
    rank: int
    device: torch.device
    dtype: torch.dtype
    held: dict[int, int]
    """Weight -> unit of the axis at which this rank's trainer part begins."""
    wanted: dict[int, Span]
    """Weight -> what this rank's engine keeps."""
    own: frozenset[str]
    """Names of the weights of which this rank's trainer has all that its engine keeps."""


def compile_reshard(
    routes: Routes, rank: int, *, dtype: torch.dtype, device: torch.device, staging_bytes: int
) -> Compiled:
    """Done once, alike on every rank, without communication. 384 ranks of DeepSeek-V3: 3 s."""
    layout, shape = routes.layout, routes.shape
    rounds = planned.schedule(routes, dtype.itemsize, staging_bytes)
    held, wanted, own = {}, {}, set()
    for number, weight in enumerate(routes.weights):
        if rank in routes.route(weight).of_rank:
            part, span = routes.held(weight).get(rank), need_of(weight, shape, layout.rollout, routes.dealt, rank)
            if part:
                held[number] = part.first
            if span and span.first < span.end:
                wanted[number] = span
                if part and part.first <= span.first and span.end <= part.end:
                    own.add(weight.name)
    return Compiled(
        routes, planned.compile_for(routes, rounds, rank), rank, device, dtype, held, wanted, frozenset(own)
    )


def pieces(compiled: Compiled, read: Read, verify: bool) -> Iterator[tuple[Weight, Span, Tensor]]:
    """Move everything; yields each piece of this rank's engine once, with the units of the weight's axis that it
    covers.

    Collective over the world: every rank must walk it to its end. A piece is a view of the trainer's tensor or of a
    round's staging buffer. verify: the sums of all pieces' bits travel too, and are compared with what arrived. Raises
    ChecksumError.
    """
    weights = compiled.routes.weights
    for task in compiled.tasks:
        parts: dict[int, Tensor] = {}

        def piece_of(piece: planned.Transfer, parts: dict[int, Tensor] = parts) -> Tensor:
            if piece.weight not in parts:
                parts[piece.weight] = read(weights[piece.weight])
            at = piece.first - compiled.held[piece.weight]
            return parts[piece.weight].narrow(axis(weights[piece.weight]), at, piece.end - piece.first)

        received = _exchange(compiled, task, piece_of, verify)
        for piece in task.copies:
            yield weights[piece.weight], Span(piece.first, piece.end), piece_of(piece)
            parts.pop(piece.weight)  # where the trainer's part is a copy it need not stay until the round's end
        for piece, tensor in zip(task.receives, received, strict=True):
            yield weights[piece.weight], Span(piece.first, piece.end), tensor


def stream(compiled: Compiled, read: Read, writers: Mapping[str, Write], verify: bool) -> Iterator[tuple[str, Tensor]]:
    """(HF name, tensor of the whole weight's shape) for an engine's loader, as soon as a weight has arrived; one that
    has a writer is given to it piece by piece instead. Raises ChecksumError.

    Only this rank's own part of the tensor is filled; the rest was never written and, on the CPU, has no memory behind
    it. An engine's loader cuts out its part and never looks at the rest. Experts of other ranks are not in the stream.
    Collective: every rank must exhaust it, the ranks without an engine too.
    """
    open_: dict[str, tuple[Tensor, int]] = {}
    wanted = {compiled.routes.weights[number].name: span for number, span in compiled.wanted.items()}
    for weight, span, tensor in pieces(compiled, read, verify):
        if weight.name in writers:
            writers[weight.name](weight, span, tensor)
            continue
        dtype, units = _dtype(compiled, weight), span.end - span.first
        if (
            weight.name in compiled.own and units == weight.shape[axis(weight)] and tensor.dtype == dtype
        ):  # the trainer's own tensor
            yield weight.name, tensor
            continue
        whole, missing = open_.get(weight.name, (None, 0))
        if whole is None:
            whole = torch.empty(weight.shape, dtype=dtype, device=compiled.device)
            missing = wanted[weight.name].end - wanted[weight.name].first
        whole.narrow(axis(weight), span.first, units).copy_(tensor)
        open_[weight.name] = whole, missing - units
        if missing == units:
            del open_[weight.name]
            yield weight.name, whole


def _dtype(compiled: Compiled, weight: Weight) -> torch.dtype:
    return torch.float32 if weight.fp32 else compiled.dtype


def _exchange(
    compiled: Compiled, task: planned.Task, piece_of: Callable[[planned.Transfer], Tensor], verify: bool
) -> list[Tensor]:
    """Tensors of `task.receives`, in order: views of one staging buffer."""
    dtype, size = torch.float32 if task.fp32 else compiled.dtype, compiled.routes.layout.size
    shapes = [_shape(compiled.routes.weights[piece.weight], piece) for piece in task.receives]
    counts = [shape.numel() for shape in shapes]
    outgoing = [piece_of(piece).to(dtype) for piece in task.sends]
    send = torch.empty(sum(t.numel() for t in outgoing), dtype=dtype, device=compiled.device)
    for place, tensor in zip(send.split([t.numel() for t in outgoing]), outgoing, strict=True):
        place.view(tensor.shape).copy_(tensor)  # `place` is contiguous: its view is no copy, on any device
    receive = torch.empty(sum(counts), dtype=dtype, device=compiled.device)
    sent_to, got_from = [0] * size, [0] * size
    for piece, tensor in zip(task.sends, outgoing, strict=True):
        sent_to[piece.target] += tensor.numel()
    for piece, count in zip(task.receives, counts, strict=True):
        got_from[piece.source] += count
    dist.all_to_all_single(receive, send, got_from, sent_to)
    arrived = [flat.view(shape) for flat, shape in zip(receive.split(counts), shapes, strict=True)]
    if verify:
        _compare(compiled, task, outgoing, arrived)
    return arrived


def _shape(weight: Weight, piece: planned.Transfer) -> torch.Size:
    dims = list(weight.shape)
    dims[axis(weight)] = piece.end - piece.first
    return torch.Size(dims)


def checksum(tensor: Tensor) -> Tensor:
    """Sum of the bits as integers: equal for equal tensors, whatever the order of the sum. (1,) int64."""
    bits = torch.int16 if tensor.dtype.itemsize == 2 else torch.int32
    return tensor.contiguous().view(bits).sum(dtype=torch.int64).reshape(1)


def _compare(compiled: Compiled, task: planned.Task, outgoing: list[Tensor], arrived: list[Tensor]) -> None:
    size = compiled.routes.layout.size
    none = torch.empty(0, dtype=torch.int64, device=compiled.device)
    mine, theirs = (
        torch.cat([none, *map(checksum, outgoing)]),
        torch.empty(len(arrived), dtype=torch.int64, device=compiled.device),
    )
    sent_to, got_from = [0] * size, [0] * size
    for piece in task.sends:
        sent_to[piece.target] += 1
    for piece in task.receives:
        got_from[piece.source] += 1
    dist.all_to_all_single(theirs, mine, got_from, sent_to)
    for piece, said, tensor in zip(task.receives, theirs.tolist(), arrived, strict=True):
        if said != int(checksum(tensor)):
            weight = compiled.routes.weights[piece.weight]
            raise ChecksumError(
                f"{weight.name}[{piece.first}:{piece.end}] from rank {piece.source} arrived at rank {compiled.rank} "
                f"with checksum {int(checksum(tensor))}, sent with {said}"
            )
