"""The tensors of a model's HF checkpoint, and where megatron-core holds each. Needs no torch."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from r1zero.model.families import FAMILIES
from r1zero.model.shape import Shape
from r1zero.model.weight_rules import ENDS, Holder, WeightRule


@dataclass(frozen=True)
class Weight:
    """One HF tensor and where megatron-core holds it."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    expert: int | None
    place: Holder
    parameter: str
    """Name in megatron-core, relative to its layer ("layer") or model chunk; `{e}`: the expert's number on its rank."""
    cut: int | None
    fp32: bool
    first: int = 0
    """First row of this tensor in the fused, unsplit parameter ..."""
    total: int = 0
    """... which has this many rows."""
    blocks: int = 1
    """Blocks of the unsplit fused parameter, distributed over the tensor ranks; 1: each rank has a block of its own."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def fused_rows(self, degree: int = 1) -> tuple["FusedRows", ...]:
        """Returns where the rows of this tensor are in the parameter of one of `degree` tensor ranks.

        All ranks have them in the same places, so the rows are counted from the beginning of the rank's own part. With
        degree 1 these are the places in the parameter without tensor parallelism.
        """
        ranks = degree if self.cut == 0 else 1
        blocks = self.blocks // ranks if self.blocks > 1 else 1
        rows, stride, first = (n // ranks // blocks for n in (self.shape[0], self.total or self.shape[0], self.first))
        return tuple(FusedRows(i * rows, i * stride + first, rows) for i in range(blocks))

    def require_layer(self) -> int:
        """Returns the number of the layer. Raises ValueError for a weight outside of the layers."""
        if self.layer is None:
            raise ValueError(f"{self.name} is in no layer")
        return self.layer

    def require_expert(self) -> int:
        """Returns the number of the expert. Raises ValueError for a weight that belongs to none."""
        if self.expert is None:
            raise ValueError(f"{self.name} is of no expert")
        return self.expert


class FusedRows(NamedTuple):
    """Consecutive rows of an HF tensor that are also consecutive in the parameter that holds them."""

    row: int
    """First row in the HF tensor, or in a rank's part of it."""
    fused: int
    """First row in the parameter."""
    rows: int


def weights(shape: Shape) -> list[Weight]:
    """Returns all tensors of the HF checkpoint, except multi-token prediction, in the order of a forward pass."""
    return list(_weights(shape))


@lru_cache(maxsize=4)
def _weights(shape: Shape) -> tuple[Weight, ...]:
    dims = _dims(shape)
    embedding, norm, head = (_weight(row, row.hf, dims, None, None) for row in ENDS)
    if shape.tied:
        embedding = _weight(
            WeightRule(ENDS[0].hf, "VH", ENDS[0].megatron, 0, place="both ends"), ENDS[0].hf, dims, None, None
        )
    found = [embedding]
    for layer in range(shape.layers):
        for row in FAMILIES[shape.family].layer(shape, layer):
            name = f"model.layers.{layer}.{row.hf}"
            if "{e}" in name:
                continue
            found.append(_weight(row, name, dims, layer, None))
        if shape.is_moe(layer):
            rows = [row for row in FAMILIES[shape.family].layer(shape, layer) if "{e}" in row.hf]
            found.extend(
                _weight(row, f"model.layers.{layer}.{row.hf.format(e=e)}", dims, layer, e)
                for e in range(shape.require_moe().experts)
                for row in rows
            )
    return (*found, norm) if shape.tied else (*found, norm, head)


def _dims(shape: Shape) -> dict[str, int]:
    dims = {
        "V": shape.vocab_size,
        "H": shape.hidden_size,
        "D": shape.head_dim,
        "F": shape.ffn_hidden_size,
        "Q": shape.heads * shape.head_dim,
        "K": shape.kv_heads * shape.head_dim,
        "g": shape.kv_heads,
    }
    if mla := shape.mla:
        dims |= {
            "A": mla.q_lora_rank or 0,
            "C": mla.kv_lora_rank,
            "R": mla.kv_lora_rank + mla.qk_rope_head_dim,
            "B": shape.heads * shape.head_dim,
            "U": shape.heads * (mla.qk_nope_head_dim + mla.v_head_dim),
            "O": shape.heads * mla.v_head_dim,
        }
    if moe := shape.moe:
        dims |= {"X": moe.experts, "E": moe.ffn_hidden_size, "S": moe.shared_experts * moe.ffn_hidden_size}
    return dims


def _weight(row: WeightRule, name: str, dims: dict[str, int], layer: int | None, expert: int | None) -> Weight:
    full = tuple(dims[letter] for letter in row.dims)
    before = row.fused.partition("[")[0]
    letters = row.fused.replace("[", "").replace("]", "")
    return Weight(
        name=name,
        shape=full,
        layer=layer,
        expert=expert,
        place=row.place,
        parameter=row.megatron,
        cut=row.cut,
        fp32=row.fp32,
        first=sum(dims[x] for x in before),
        total=sum(dims[x] for x in letters) or full[0],
        blocks=dims[row.blocks] if row.blocks else 1,
    )
