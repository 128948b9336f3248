"""Which part of the trained state this rank owns, and where it is in a checkpoint's tensors.

megatron's distributed optimizer distributes each parameter over the data-parallel ranks as ranges of its flattened
elements. A range of a matrix consists of at most three rectangles: the rest of a row, whole rows, and the beginning of
a row. A rank writes exactly these, and reads exactly these from a checkpoint of any layout. Nothing is gathered, and
the only additional memory is one rectangle.

Local rows are those of this rank's parameter; global rows are those of the parameter without tensor parallelism.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

from r1zero.checkpoint.dist_files import Chunk, place
from r1zero.distributed.layout import MegatronGrids
from r1zero.model import placement
from r1zero.model.mapping import Local
from r1zero.model.shape import CHUNK_BYTES, Shape


class RowSegment(NamedTuple):
    """Consecutive rows of the local parameter that are also consecutive in the global one."""

    local: int
    world: int
    """Global row of the first of them."""
    rows: int


class Rectangle(NamedTuple):
    """A rectangle of a parameter, in the local parameter and in the checkpoint's tensor."""

    begin: int
    end: int
    """Range of the flattened local parameter."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    """Position and size in the checkpoint's tensor."""


@dataclass(frozen=True)
class ParameterSlot:
    """Where one of megatron's parameters is in the checkpoint."""

    parameter: Tensor
    key: str
    shape: tuple[int, ...]
    """Shape of the checkpoint's tensor."""
    index: tuple[int, ...]
    """Index on the axes that precede the parameter's own: the layer, or the expert."""
    segments: tuple[RowSegment, ...]
    column: int
    """Global column of the first local column."""
    is_first_copy: bool
    """Whether this rank writes the part; exactly one of the tensor or pipeline ranks with equal parts does."""

    def rectangles(self, begin: int, end: int) -> Iterator[Rectangle]:
        """Yields the rectangles of the elements from `begin` to `end - 1` of the flattened parameter.

        Each has at most CHUNK_BYTES.
        """
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
    """Yields the at most three rectangles of a flat range: (first row, row after the last, first column, column after
    the last)."""
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


def parameter_slots(local: dict[str, Local], shape: Shape, grids: MegatronGrids, rank: int) -> list[ParameterSlot]:
    """Returns one entry per parameter and fp32 buffer of this rank.

    local: mapping.local_tensors of the trained model.
    """
    members: dict[int, list[Local]] = {}
    for one in local.values():
        members.setdefault(id(one.parameter), []).append(one)
    return [_place_of(few, shape, grids, rank) for few in members.values()]


def _place_of(members: list[Local], shape: Shape, grids: MegatronGrids, rank: int) -> ParameterSlot:
    """members: the HF tensors in the parameter."""
    weight, at = members[0].weight, place(members[0].weight, shape)
    grid, axis = placement.grid_of(weight, grids)
    column = members[0].part[1].start if len(weight.shape) > 1 else 0
    first_copy = (weight.cut is not None or grid.coordinate(rank, axis) == 0) and not (
        weight.place == "both ends" and grid.coordinate(rank, "pp") > 0
    )
    return ParameterSlot(
        members[0].parameter, at.key, at.shape(weight), at.index, _segments(members), column, first_copy
    )


def _segments(members: list[Local]) -> tuple[RowSegment, ...]:
    """members: the HF tensors in one parameter. Neighbouring rows are joined, so that few rectangles are written."""
    found = []
    for member in members:
        for row, local, rows in member.weight.fused_rows(member.degree):
            first = member.part[0].start + row
            run = next(run for run in member.weight.fused_rows() if run.row <= first < run.row + run.rows)
            found.append(RowSegment(local, run.fused + first - run.row, rows))
    joined: list[RowSegment] = []
    for segment in sorted(found):
        last = joined[-1] if joined else None
        if last and (last.local + last.rows, last.world + last.rows) == segment[:2]:
            joined[-1] = last._replace(rows=last.rows + segment.rows)
        else:
            joined.append(segment)
    return tuple(joined)


@dataclass(frozen=True)
class OptimizerShard:
    """The part of one parameter that a data-parallel rank's optimizer owns."""

    part: DistributedOptimizer
    parameter: Tensor
    begin: int
    end: int
    """Range of the flattened parameter."""
    master: Tensor
    """(end - begin,) fp32. For an fp32 model it is a view of the parameter itself."""

    @property
    def state(self) -> dict[str, Any]:
        """Adam's own dict for the master weight; empty before the first step."""
        return self.part.optimizer.state[self.master]


MOMENTS = ("exp_avg", "exp_avg_sq")


def optimizer_shards(optimizer: Any) -> list[OptimizerShard]:
    """Returns the parts of all parameters that this rank's optimizer owns."""
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
    """Returns one optimizer for dense parameters, and another for experts if they are distributed over ranks."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def get_step(optimizer: Any) -> float:
    """Returns Adam's step count: torch keeps it in each parameter's state, apex and MindSpeed in its group."""
    for shard in optimizer_shards(optimizer):
        if "step" in shard.state:
            return float(shard.state["step"])
    groups = [group for part in parts(optimizer) for group in part.optimizer.param_groups]
    return float(next((group["step"] for group in groups if "step" in group), 0.0))


def set_step(optimizer: Any, step: float) -> None:
    """Set Adam's step count where the optimizer's class keeps it, in the state made by `allocate_moments`."""
    for part in parts(optimizer):
        if isinstance(part.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            for group in part.optimizer.param_groups:
                for master in group["params"]:
                    device = master.device if group.get("fused") else "cpu"  # where that form counts
                    part.optimizer.state[master]["step"] = torch.tensor(step, device=device)
        else:
            for group in part.optimizer.param_groups:
                group["step"] = int(step)


def allocate_moments(shard: OptimizerShard) -> None:
    """Create Adam's moments, which Adam itself creates only at the first step; a resumed run needs them earlier."""
    for name in MOMENTS:
        if name not in shard.state:
            shard.state[name] = torch.zeros_like(shard.master)


def chunk(where: ParameterSlot, prefix: str, rectangle: Rectangle, dtype: torch.dtype) -> Chunk:
    """Returns the chunk of a rectangle. prefix: of the key, empty for the weights themselves."""
    return Chunk(prefix + where.key, where.shape, dtype, rectangle.offsets, rectangle.sizes)
