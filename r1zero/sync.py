"""Weights from the trainer's shards to whole HF tensors where they are wanted: the generic path, and the oracle of any faster one.

What goes where is compiled once from the family's table and both layouts. Tensors travel in buckets, one all-to-all each; a part
that a receiver holds itself is not sent, and an expert travels only to the ranks that own it in their engine.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.layout import Grid, Layout, MegatronGrids
from r1zero.model.families import Weight, weights
from r1zero.model.placement import Part, holders
from r1zero.model.shape import Shape

BUCKET_ELEMENTS = 16 << 20
"""Full elements of the tensors that travel together; a larger tensor travels alone."""


@dataclass
class Bucket:
    weights: list[Weight] = field(default_factory=list)
    sends: list[tuple[int, Weight, Part]] = field(default_factory=list)
    """(receiver, weight, part) that this rank sends."""
    receives: list[tuple[int, Weight, Part]] = field(default_factory=list)
    """(sender, weight, part) that come to this rank."""
    kept: list[tuple[Weight, Part]] = field(default_factory=list)
    """Parts that this rank wants and holds."""
    moves: bool = False
    """Whether anything is sent between any two ranks."""


@dataclass(frozen=True)
class Route:
    """All buckets as one rank sees them, in the order that every rank walks."""

    buckets: list[Bucket]
    rank: int
    size: int

    @property
    def bytes_received(self) -> int:
        """By this rank from others, at two bytes an element."""
        return sum(2 * _numel(part) for b in self.buckets for _, _, part in b.receives)


def engine_receivers(rollout: Grid, shape: Shape, expert_parallel: bool) -> Callable[[Weight], list[int]]:
    """Rollout ranks that want a weight: all of them; with expert parallelism an expert's owner in each replica.

    vLLM deals experts in contiguous blocks over (data, tensor) ranks, tensor fastest.
    """
    if not expert_parallel or not shape.moe:
        return lambda weight: list(rollout.ranks)
    tp, dp = rollout.size("tp"), rollout.size("dp")
    each = shape.moe.experts // (tp * dp)

    def receivers(weight: Weight) -> list[int]:
        if weight.expert is None:
            return list(rollout.ranks)
        owner = weight.expert // each
        return [rollout.at(tp=owner % tp, dp=owner // tp, replica=r) for r in range(rollout.size("replica"))]
    return receivers


def compile_route(shape: Shape, grids: MegatronGrids, receivers: Callable[[Weight], list[int]], rank: int, size: int) -> Route:
    """Who sends which part of which weight to whom. Pure: every rank computes its own view of the same plan."""
    buckets: list[Bucket] = []
    room = 0
    for weight in weights(shape):
        if not buckets or weight.size > room:
            buckets.append(Bucket())
            room = BUCKET_ELEMENTS
        room -= weight.size
        bucket = buckets[-1]
        bucket.weights.append(weight)
        owners: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for owner, part in holders(weight, shape, grids).items():
            owners.setdefault(tuple((s.start, s.stop) for s in part), []).append(owner)
        for receiver in receivers(weight):
            for corners, ranks in owners.items():
                part = tuple(slice(*c) for c in corners)
                sender = receiver if receiver in ranks else ranks[receiver % len(ranks)]
                if sender == receiver == rank:
                    bucket.kept.append((weight, part))
                elif sender == rank:
                    bucket.sends.append((receiver, weight, part))
                elif receiver == rank:
                    bucket.receives.append((sender, weight, part))
                bucket.moves |= sender != receiver
    return Route(buckets, rank, size)


def stream(route: Route, read: Callable[[Weight], Tensor] | None, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """(HF name, full tensor) of every weight that this rank wants, in order. Every rank of the world must run it to its end.

    read: this rank's part of a weight; None on a rank that holds none. dtype: of all tensors but fp32 ones.
    """
    for bucket in route.buckets:
        found: dict[str, list[tuple[Part, Tensor]]] = {}
        for weight, part in bucket.kept:
            found.setdefault(weight.name, []).append((part, read(weight)))
        if bucket.moves:
            for fp32 in (False, True):
                if any(w.fp32 == fp32 for w in bucket.weights):
                    for name, part, tensor in _exchange(route, bucket, read, fp32, torch.float32 if fp32 else dtype, device):
                        found.setdefault(name, []).append((part, tensor))
        for weight in bucket.weights:
            if weight.name in found:
                yield weight.name, _assemble(weight, found.pop(weight.name))


def _exchange(route: Route, bucket: Bucket, read: Callable[[Weight], Tensor] | None, fp32: bool, dtype: torch.dtype,
              device: torch.device) -> Iterator[tuple[str, Part, Tensor]]:
    sends = sorted((s for s in bucket.sends if s[1].fp32 == fp32), key=lambda s: s[0])
    receives = sorted((r for r in bucket.receives if r[1].fp32 == fp32), key=lambda r: r[0])
    counts_in, counts_out = [0] * route.size, [0] * route.size
    for receiver, _, part in sends:
        counts_out[receiver] += _numel(part)
    for sender, _, part in receives:
        counts_in[sender] += _numel(part)
    parts = [read(weight).reshape(-1) for _, weight, _ in sends]
    into = torch.empty(sum(counts_in), dtype=dtype, device=device)
    dist.all_to_all_single(into, torch.cat(parts) if parts else torch.empty(0, dtype=dtype, device=device), counts_in, counts_out)
    offset = 0
    for _, weight, part in receives:
        shape = tuple(s.stop - s.start for s in part)
        yield weight.name, part, into[offset:offset + _numel(part)].view(shape)
        offset += _numel(part)


def _assemble(weight: Weight, parts: list[tuple[Part, Tensor]]) -> Tensor:
    if len(parts) == 1:
        return parts[0][1]
    full = parts[0][1].new_empty(weight.shape)
    for part, tensor in parts:
        full[part] = tensor
    return full


def _numel(part: Part) -> int:
    count = 1
    for s in part:
        count *= s.stop - s.start
    return count
