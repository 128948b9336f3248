"""Maps each rank's megatron-core parameters to the rectangles of HF tensors that they hold.

The pairs of names come from the tables of model/weight_rules.py (`WeightRule`), and `placement.parameter_name`
completes megatron's name with the number of the layer on its pipeline stage.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.utils import unwrap_model
from torch import Tensor

from r1zero.distributed.layout import MegatronGrids
from r1zero.model import placement
from r1zero.model.placement import Part
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight, weights


@dataclass(frozen=True)
class Local:
    """This rank's part of one HF tensor."""

    weight: Weight
    part: Part
    """The rectangle of the full tensor that this rank holds."""
    parameter: Tensor
    degree: int
    """Number of ranks that share the tensor."""

    def view(self) -> Tensor:
        """Returns the part as a view of its parameter, which may hold other tensors too (fused).

        Do not keep the view: the parameter's memory is replaced when policy and reference exchange their weights.
        """
        whole, runs = self.parameter.detach(), self.weight.fused_rows(self.degree)
        if runs[0].rows == len(whole):
            return whole
        return whole.view(len(runs), -1, *whole.shape[1:]).narrow(1, runs[0].fused, runs[0].rows)

    def tensor(self) -> Tensor:
        """Returns the part in the shape of its rectangle. Copies only if the parameter interleaves it with others."""
        return self.view().reshape([cut.stop - cut.start for cut in self.part])


def local_tensors(chunks: list[torch.nn.Module], shape: Shape, grids: MegatronGrids) -> dict[str, Local]:
    """Returns HF name -> this rank's part, in the order of a forward pass.

    The last pipeline stage has a copy of a tied embedding as well. Raises RuntimeError if the model has a parameter
    that the family's table does not name.
    """
    rank = dist.get_rank()
    stage = grids.dense.coordinate(rank, "pp")
    model = unwrap_model(chunks[0])
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    local = {}
    for weight in weights(shape):
        part = placement.local_part(weight, shape, grids, rank)
        if part is not None:
            name = placement.parameter_name(weight, shape, grids, stage)
            local[weight.name] = Local(weight, part, held[name], placement.degree(weight, grids))
    unnamed = {id(p) for p in model.parameters()} - {id(one.parameter) for one in local.values()}
    if unnamed:
        names = [name for name, p in model.named_parameters() if id(p) in unnamed]
        raise RuntimeError(f"the family's table has no row for these parameters of the model: {names}")
    return local
