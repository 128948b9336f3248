"""Which part of the trained state this rank owns, and where it lies in a checkpoint's tensors.

megatron's distributed optimizer deals each parameter out over the data-parallel ranks as one range of its flattened
elements. A range of a matrix is at most three rectangles: the rest of a row, whole rows, the beginning of a row. A rank
writes just these, and reads just these back, in whatever layout they were written: nothing is gathered, and no more
than one rectangle is held beside what the rank has anyway.

Legend: local rows are those of this rank's parameter, global rows those of the parameter without tensor parallelism.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from r1zero.checkpoint.dist_files import CheckpointSlot, Chunk, place
from r1zero.distributed.layout import MegatronGrids
from r1zero.model import placement
from r1zero.model.mapping import Local
from r1zero.model.shape import CHUNK_BYTES, Shape


class RowSegment(NamedTuple):
    """Rows of the local parameter that are neighbours in the global one, too."""

    local: int
    world: int
    """Global row of the first of them."""
    rows: int


class Rectangle(NamedTuple):
    begin: int
    end: int
    """Range of the flattened local parameter."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    """In the checkpoint's tensor."""


@dataclass(frozen=True)
class ParameterPlace:
    """Where one of megatron's parameters lies in the checkpoint."""

    parameter: Tensor
    key: str
    shape: tuple[int, ...]
    """Of the checkpoint's tensor."""
    index: tuple[int, ...]
    """On the axes that stand before the parameter's own: the layer, or the expert."""
    segments: tuple[RowSegment, ...]
    column: int
    """Global column of the first local one."""
    is_first_copy: bool
    """Of the ranks with equal tensor-parallel parts, this one writes."""

    def rectangles(self, begin: int, end: int) -> Iterator[Rectangle]:
        """Elements begin .. end - 1 of the flattened parameter, none of more than CHUNK_BYTES in fp32."""
        width = self.parameter.shape[1] if self.parameter.dim() > 1 else 1
        most_rows = max(1, CHUNK_BYTES // 4 // width)
        for first_row, last_row, first, last in _runs(begin, end, width):
            for segment in self.segments:
                low, high = max(first_row, segment.local), min(last_row, segment.local + segment.rows)
                for row in range(low, high, most_rows):
                    rows = min(most_rows, high - row)
                    world = (segment.world + row - segment.local, self.column + first)[: self.parameter.dim()]
                    sizes = (rows, last - first)[: self.parameter.dim()]
                    yield Rectangle(
                        row * width + first,
                        (row + rows - 1) * width + last,
                        (*self.index, *world),
                        (*(1 for _ in self.index), *sizes),
                    )


def _runs(begin: int, end: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """(first row, row after the last, first column, column after the last) of the at most three rectangles of a flat
    range."""
    row, column = divmod(begin, width)
    if column:
        stop = min(end, (row + 1) * width)
        yield row, row + 1, column, stop - row * width
        row += 1
    whole = end // width
    if row < whole:
        yield row, whole, 0, width
    if end % width and whole >= row:
        yield whole, whole + 1, 0, end % width


def parameter_places(local: dict[str, Local], shape: Shape, grids: MegatronGrids, rank: int) -> list[ParameterPlace]:
    """One for each of this rank's parameters and fp32 buffers. local: mapping.local_tensors of the trained model."""
    members: dict[int, list[Local]] = {}
    for one in local.values():
        members.setdefault(id(one.parameter), []).append(one)
    return [_place_of(few, shape, grids, rank) for few in members.values()]


def _place_of(members: list[Local], shape: Shape, grids: MegatronGrids, rank: int) -> ParameterPlace:
    """members: the HF tensors that the parameter is made of."""
    weight, at = members[0].weight, place(members[0].weight, shape)
    grid, axis = placement.grid_of(weight, grids)
    index = grid.coordinate(rank, axis) if weight.cut is not None else 0
    column = members[0].part[1].start if len(weight.shape) > 1 else 0
    first_copy = (weight.cut is not None or grid.coordinate(rank, axis) == 0) and not (
        weight.place == "both ends" and grid.coordinate(rank, "pp") > 0
    )
    return ParameterPlace(
        members[0].parameter, at.key, at.shape(weight), at.index, _segments(members, at, index), column, first_copy
    )


def _segments(members: list[Local], at: CheckpointSlot, index: int) -> tuple[RowSegment, ...]:
    weight, degree = members[0].weight, members[0].degree
    if weight.blocks > 1:  # the blocks are dealt out in order: one run of rows
        return (RowSegment(0, index * (at.rows // degree), at.rows // degree),)
    if len(members) == 1:
        part = members[0].part[0]
        return (RowSegment(0, part.start, part.stop - part.start),)
    return tuple(
        RowSegment(m.weight.first // degree, m.weight.first + m.part[0].start, m.weight.shape[0] // degree)
        for m in members
    )


@dataclass(frozen=True)
class OptimizerShard:
    """What a data-parallel rank's optimizer keeps of one parameter."""

    part: DistributedOptimizer
    parameter: Tensor
    begin: int
    end: int
    """Range of the flattened parameter."""
    master: Tensor
    """(end - begin,) fp32; of an fp32 model a view of the parameter itself."""

    @property
    def state(self) -> dict[str, Any]:
        """Adam's own dict for the master weight; empty before the first step."""
        return self.part.optimizer.state[self.master]


MOMENTS = ("exp_avg", "exp_avg_sq")


def optimizer_shards(optimizer: Any) -> list[OptimizerShard]:
    found = []
    for part in parts(optimizer):
        for parameter, (group, order) in part.model_param_group_index_map.items():
            owned = part._get_model_param_range_map(parameter)["param"]
            found.append(
                OptimizerShard(
                    part, parameter, owned.start, owned.end, part.optimizer.param_groups[group]["params"][order]
                )
            )
    return found


def parts(optimizer: Any) -> list[DistributedOptimizer]:
    """One for dense parameters, with experts over several ranks another one for them."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def get_step(optimizer: Any) -> float:
    """Updates that Adam counts: torch's in the state of each parameter, apex's and MindSpeed's in its group."""
    for shard in optimizer_shards(optimizer):
        if "step" in shard.state:
            return float(shard.state["step"])
    groups = [group for part in parts(optimizer) for group in part.optimizer.param_groups]
    return float(next((group["step"] for group in groups if "step" in group), 0.0))


def set_step(optimizer: Any, step: float) -> None:
    """As the optimizer's class wants it, in the state made by `allocate_moments`."""
    for part in parts(optimizer):
        if isinstance(part.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            for state in part.optimizer.state.values():
                state["step"] = torch.tensor(step)
        else:
            for group in part.optimizer.param_groups:
                group["step"] = int(step)


def allocate_moments(shard: OptimizerShard) -> None:
    """Adam makes its moments at the first step; a resumed run needs them before."""
    for name in MOMENTS:
        if name not in shard.state:
            shard.state[name] = torch.zeros_like(shard.master)


def chunk(where: ParameterPlace, prefix: str, rectangle: Rectangle, dtype: torch.dtype) -> Chunk:
    """prefix: of the key, empty for the weights themselves."""
    return Chunk(prefix + where.key, where.shape, dtype, rectangle.offsets, rectangle.sizes)
