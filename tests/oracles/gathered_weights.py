"""The oracle of the compiled reshard: full HF tensors out of a model that is spread over ranks, a bucket at a time,
point to point.

Who sends which part to whom follows from the family's table and the layout alone, so that every rank knows its own
sends and receives. A receiver that holds a part takes it from its own memory; copies of a part share the sending among
them.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.distributed.layout import Grid, MegatronGrids
from r1zero.model import placement
from r1zero.model.mapping import Local
from r1zero.model.placement import Part
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight, weights

BUCKET_BYTES = 32 << 20
"""Of full tensors, made and sent together."""

Receivers = Callable[[Weight], tuple[int, ...]]
"""World ranks that get the weight, in ascending order."""


def stream(
    local: dict[str, Local], shape: Shape, grids: MegatronGrids, receivers: Receivers, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """(HF name, full tensor) of each weight that this rank receives, in the order of a forward pass.

    Called by all ranks that hold or receive something (others may), each to the end: sends happen while it runs. local:
    `mapping.local_tensors` of this rank, empty outside the model's grid. dtype: of the model's parameters.
    A yielded tensor may be a view of a live parameter: copy what must outlive the next optimizer step.
    """
    rank = dist.get_rank()
    device = next(iter(local.values())).parameter.device if local else torch.device("cpu")
    for bucket in _buckets(weights(shape), dtype):
        plan = [(weight, _routes(weight, shape, grids, receivers(weight))) for weight in bucket]
        incoming = _exchange(plan, local, rank, dtype, device)
        for weight, routes in plan:
            pieces = [(part, source) for part, source, target in routes if target == rank]
            if pieces:
                yield weight.name, _assemble(weight, pieces, local, incoming, rank)


def _buckets(every: list[Weight], dtype: torch.dtype) -> Iterator[list[Weight]]:
    bucket: list[Weight] = []
    held = 0
    for weight in every:
        size = weight.size * _type(weight, dtype).itemsize
        if bucket and held + size > BUCKET_BYTES:
            yield bucket
            bucket, held = [], 0
        bucket.append(weight)
        held += size
    yield bucket


def _type(weight: Weight, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if weight.fp32 else dtype


def _routes(
    weight: Weight, shape: Shape, grids: MegatronGrids, targets: tuple[int, ...]
) -> list[tuple[Part, int, int]]:
    """(part, source rank, target rank); source and target are one where the target holds the part."""
    copies: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for rank, part in placement.holders(weight, shape, grids).items():
        copies.setdefault(tuple((cut.start, cut.stop) for cut in part), []).append(rank)
    return [
        (tuple(slice(*cut) for cut in key), target if target in ranks else ranks[i % len(ranks)], target)
        for key, ranks in copies.items()
        for i, target in enumerate(targets)
    ]


def _exchange(
    plan: list[tuple[Weight, list[tuple[Part, int, int]]]],
    local: dict[str, Local],
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, dict[int, Tensor]]:
    """One message to each rank that this one sends to, one from each that it hears from. Returns name -> source ->
    part."""
    outgoing: dict[int, list[Tensor]] = {}
    expected: dict[int, list[tuple[Weight, Part]]] = {}
    for weight, routes in plan:
        for part, source, target in routes:
            if source == target:
                continue
            if source == rank:
                outgoing.setdefault(target, []).append(local[weight.name].tensor().reshape(-1).view(torch.uint8))
            elif target == rank:
                expected.setdefault(source, []).append((weight, part))
    messages = {target: torch.cat(pieces) for target, pieces in outgoing.items()}
    buffers = {
        source: torch.empty(sum(_bytes(w, p, dtype) for w, p in items), dtype=torch.uint8, device=device)
        for source, items in expected.items()
    }
    operations = [dist.P2POp(dist.isend, message, target) for target, message in sorted(messages.items())] + [
        dist.P2POp(dist.irecv, buffer, source) for source, buffer in sorted(buffers.items())
    ]
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
    found: dict[str, dict[int, Tensor]] = {}
    for source, items in expected.items():
        pieces = buffers[source].split([_bytes(weight, part, dtype) for weight, part in items])
        for (weight, part), piece in zip(items, pieces, strict=True):
            found.setdefault(weight.name, {})[source] = piece.view(_type(weight, dtype)).view(_dims(part))
    return found


def _dims(part: Part) -> list[int]:
    return [cut.stop - cut.start for cut in part]


def _bytes(weight: Weight, part: Part, dtype: torch.dtype) -> int:
    return torch.Size(_dims(part)).numel() * _type(weight, dtype).itemsize


def _assemble(
    weight: Weight,
    pieces: list[tuple[Part, int]],
    local: dict[str, Local],
    incoming: dict[str, dict[int, Tensor]],
    rank: int,
) -> Tensor:
    tensors = [
        (part, local[weight.name].tensor() if source == rank else incoming[weight.name][source])
        for part, source in pieces
    ]
    if len(tensors) == 1:
        return tensors[0][1]
    full = tensors[0][1].new_empty(weight.shape)
    for part, tensor in tensors:
        full[part] = tensor
    return full


def engine_receivers(rollout: Grid, shape: Shape, expert_parallel: bool) -> Receivers:
    """Rollout ranks that want a weight: all of them; with expert parallelism an expert's owner in each replica.

    vLLM deals experts in contiguous blocks over (data, tensor) ranks, tensor fastest.
    """
    if not expert_parallel or not shape.moe:
        return lambda weight: rollout.ranks
    tp, dp = rollout.size("tp"), rollout.size("dp")
    each = shape.moe.experts // (tp * dp)

    def receivers(weight: Weight) -> tuple[int, ...]:
        if weight.expert is None:
            return rollout.ranks
        owner = weight.expert // each
        return tuple(rollout.at(tp=owner % tp, dp=owner // tp, replica=r) for r in range(rollout.size("replica")))

    return receivers
