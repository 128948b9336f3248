"""Executes the compiled transfers: one all-to-all per round, from the trainer's parts to the engine's memory.

A piece is an interval of a weight's axis, as one rank sends it to another. Each rank stages only the pieces that it
sends or receives. `pieces` yields the pieces that arrive. `stream` uses it, and assembles the pieces: weights that the
engine can keep as they are go to the caller's writers, and the others are yielded whole, for the engine's own loader
(which may repack them, as on a CPU). With `verify`, each piece's checksum is compared with the sender's.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.model.weights import Weight
from r1zero.weight_sync.rounds import Task, Transfer, compile_for, schedule
from r1zero.weight_sync.routes import Routes, Span, axis, required_span

Read = Callable[[Weight], Tensor]
"""Returns this rank's part of a weight from the trainer, in HF orientation."""
Write = Callable[[Weight, Span, Tensor], None]
"""Stores a piece of a weight. The span counts rows or columns of the whole HF tensor."""


class ChecksumError(Exception):
    """A weight did not arrive as it was sent."""


@dataclass(frozen=True)
class Compiled:
    """One rank's tasks, ready to run. All ranks have the same rounds, even if a rank has nothing to do in some."""

    routes: Routes
    tasks: list[Task]
    rank: int
    device: torch.device
    dtype: torch.dtype
    held: dict[int, int]
    """Index of a weight -> first row or column that this rank's trainer holds."""
    wanted: dict[int, Span]
    """Index of a weight -> rows or columns that this rank's engine keeps."""
    own: frozenset[str]
    """Names of the weights of which this rank's trainer holds all that this rank's engine keeps."""


def compile_sync(
    routes: Routes, rank: int, *, dtype: torch.dtype, device: torch.device, staging_bytes: int
) -> Compiled:
    """Compute this rank's tasks, once and without communication. Takes 3 s for DeepSeek-V3 on 384 ranks."""
    layout, shape = routes.layout, routes.shape
    rounds = schedule(routes, dtype.itemsize, staging_bytes)
    held, wanted, own = {}, {}, set()
    for number, weight in enumerate(routes.weights):
        if rank in routes.route(weight).of_rank:
            part, span = (
                routes.held(weight).get(rank),
                required_span(weight, shape, layout.rollout, routes.distribution, rank),
            )
            if part:
                held[number] = part.first
            if span and span.first < span.end:
                wanted[number] = span
                if part and part.first <= span.first and span.end <= part.end:
                    own.add(weight.name)
    return Compiled(routes, compile_for(routes, rounds, rank), rank, device, dtype, held, wanted, frozenset(own))


def pieces(compiled: Compiled, read: Read, verify: bool) -> Iterator[tuple[Weight, Span, Tensor]]:
    """Transfer all weights. Yields (weight, the rows or columns that a piece covers, piece) for this rank's engine.

    Collective over the world: every rank must exhaust the iterator. A piece is a view of the trainer's tensor or of the
    round's staging buffer. verify: also transfer checksums of all pieces and compare them with what arrived. Raises
    ChecksumError.
    """
    weights = compiled.routes.weights
    for task in compiled.tasks:
        parts: dict[int, Tensor] = {}

        def piece_of(piece: Transfer, parts: dict[int, Tensor] = parts) -> Tensor:
            if piece.weight not in parts:
                parts[piece.weight] = read(weights[piece.weight])
            at = piece.first - compiled.held[piece.weight]
            return parts[piece.weight].narrow(axis(weights[piece.weight]), at, piece.end - piece.first)

        received = _exchange(compiled, task, piece_of, verify)
        for piece in task.copies:
            yield weights[piece.weight], Span(piece.first, piece.end), piece_of(piece)
            parts.pop(piece.weight)  # the trainer's part may be a copy, which need not stay until the round's end
        for piece, tensor in zip(task.receives, received, strict=True):
            yield weights[piece.weight], Span(piece.first, piece.end), tensor


def stream(compiled: Compiled, read: Read, writers: Mapping[str, Write], verify: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield (HF name, tensor of the whole weight's shape) for an engine's loader, as soon as a weight is complete.

    A weight that has a writer is passed to it in pieces instead. Only this rank's own part of a yielded tensor is
    filled. The rest is never written and, on a CPU, takes no memory; an engine's loader takes its part and never reads
    the rest. Experts of other ranks are not yielded. Collective over the world: every rank must exhaust the iterator,
    including ranks without an engine. Raises ChecksumError.
    """
    incomplete: dict[str, tuple[Tensor, int]] = {}
    wanted = {compiled.routes.weights[number].name: span for number, span in compiled.wanted.items()}
    for weight, span, tensor in pieces(compiled, read, verify):
        if weight.name in writers:
            writers[weight.name](weight, span, tensor)
            continue
        dtype, units = _dtype(compiled, weight), span.end - span.first
        # If the trainer's own tensor is the whole weight in the right type, no copy is needed.
        if weight.name in compiled.own and units == weight.shape[axis(weight)] and tensor.dtype == dtype:
            yield weight.name, tensor
            continue
        whole, missing = incomplete.get(weight.name, (None, 0))
        if whole is None:
            whole = torch.empty(weight.shape, dtype=dtype, device=compiled.device)
            missing = wanted[weight.name].end - wanted[weight.name].first
        whole.narrow(axis(weight), span.first, units).copy_(tensor)
        incomplete[weight.name] = whole, missing - units
        if missing == units:
            del incomplete[weight.name]
            yield weight.name, whole


def _dtype(compiled: Compiled, weight: Weight) -> torch.dtype:
    return torch.float32 if weight.fp32 else compiled.dtype


def _exchange(compiled: Compiled, task: Task, piece_of: Callable[[Transfer], Tensor], verify: bool) -> list[Tensor]:
    """Returns the tensors of `task.receives`, in order, as views of one staging buffer."""
    dtype, size = torch.float32 if task.fp32 else compiled.dtype, compiled.routes.layout.size
    shapes = [_shape(compiled.routes.weights[piece.weight], piece) for piece in task.receives]
    counts = [shape.numel() for shape in shapes]
    outgoing = [piece_of(piece).to(dtype) for piece in task.sends]
    send = torch.empty(sum(t.numel() for t in outgoing), dtype=dtype, device=compiled.device)
    for slot, tensor in zip(send.split([t.numel() for t in outgoing]), outgoing, strict=True):
        slot.view(tensor.shape).copy_(tensor)  # `slot` is contiguous, so its view is not a copy
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


def _shape(weight: Weight, piece: Transfer) -> torch.Size:
    dims = list(weight.shape)
    dims[axis(weight)] = piece.end - piece.first
    return torch.Size(dims)


def checksum(tensor: Tensor) -> Tensor:
    """Returns the sum of the bits as integers, which does not depend on the order of addition. (1,) int64."""
    bits = torch.int16 if tensor.dtype.itemsize == 2 else torch.int32
    return tensor.contiguous().view(bits).sum(dtype=torch.int64).reshape(1)


def _compare(compiled: Compiled, task: Task, outgoing: list[Tensor], arrived: list[Tensor]) -> None:
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
    found = torch.cat([none, *map(checksum, arrived)])
    # The host waits for the device here, once for all pieces.
    for piece, stated, computed in zip(task.receives, theirs.tolist(), found.tolist(), strict=True):
        if stated != computed:
            weight = compiled.routes.weights[piece.weight]
            raise ChecksumError(
                f"{weight.name}[{piece.first}:{piece.end}] from rank {piece.source} arrived at rank {compiled.rank} "
                f"with checksum {computed}, sent with {stated}"
            )
