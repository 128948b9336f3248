"""Which rank holds which part of which weight: a pure function of the family's table and the layout. Needs no torch.

Every rank computes the same result, so loading, export, sync and planning need no communication for it.
"""

from r1zero.config import Train, UserError
from r1zero.distributed.layout import Grid, MegatronGrids
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight

Part = tuple[slice, ...]
"""A rectangle of a full HF tensor."""


def stages(shape: Shape, grids: MegatronGrids) -> list[range]:
    """Returns the layers of each pipeline stage. Raises UserError if they do not add up to the model's layers."""
    pp = grids.dense.size("pp")
    if not grids.pipeline_layers and shape.layers % pp:
        raise UserError(
            f"{shape.layers} layers do not divide into {pp} equal stages; set pipeline_layers, one number per stage"
        )
    counts = grids.pipeline_layers or (shape.layers // pp,) * pp
    if sum(counts) != shape.layers or min(counts) < 1:
        raise UserError(
            f"pipeline_layers = {list(counts)} adds up to {sum(counts)}, but the model has {shape.layers} layers; "
            "every stage needs at least one"
        )
    starts = [sum(counts[:i]) for i in range(pp)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]


def recomputed_layers(train: Train, shape: Shape, grids: MegatronGrids) -> list[int]:
    """Returns the number of layers of each pipeline stage of the trainer that are recomputed as a whole.

    Raises UserError if train.recompute_layers does not fit the stages.
    """
    layers = [len(stage) for stage in stages(shape, grids)]
    chosen = list(train.recompute_layers)
    if not chosen:
        return layers if train.recompute == "full" else [0] * len(layers)
    if train.recompute != "full":
        raise UserError(
            f'train.recompute_layers = {chosen}, but train.recompute = "{train.recompute}"; set it to "full", or '
            "remove recompute_layers"
        )
    if len(chosen) != len(layers) or any(n > most for n, most in zip(chosen, layers, strict=True)):
        raise UserError(
            f"train.recompute_layers = {chosen}, but the pipeline stages have {layers} layers; give one number for "
            "each stage, at most that of its layers"
        )
    return chosen


def check(shape: Shape, grids: MegatronGrids) -> None:
    """Raises UserError if the degrees do not divide the model's dimensions evenly."""
    stages(shape, grids)
    tp, etp, ep = grids.dense.size("tp"), grids.experts.size("etp"), grids.experts.size("ep")
    cuts = [
        ("num_attention_heads", shape.heads, tp),
        ("num_key_value_heads", shape.kv_heads, tp),
        ("intermediate_size", shape.ffn_hidden_size, tp),
        ("vocab_size", shape.vocab_size, tp),
    ]
    if shape.moe:
        cuts += [
            ("moe_intermediate_size", shape.moe.ffn_hidden_size, etp),
            ("n_shared_experts x moe_intermediate_size", shape.moe.shared_experts * shape.moe.ffn_hidden_size, tp),
        ]
        if shape.moe.experts % ep:
            raise UserError(
                f"expert_model_parallel_size = {ep} does not divide the model's {shape.moe.experts} experts; "
                "choose a divisor"
            )
    elif ep > 1:
        raise UserError(f"expert_model_parallel_size = {ep}, but {shape.family} has no experts; set it to 1")
    for name, size, degree in cuts:
        if size % degree:
            raise UserError(
                f"tensor_model_parallel_size = {degree} does not divide the model's {name} = {size}; choose a divisor"
            )


def stages_of(weight: Weight, shape: Shape, grids: MegatronGrids) -> tuple[int, ...]:
    """Returns the pipeline stages that hold the weight: one, or the first and the last for a tied embedding."""
    last = grids.dense.size("pp") - 1
    if weight.place == "layer":
        return tuple(i for i, layers in enumerate(stages(shape, grids)) if weight.layer in layers)
    return {"first": (0,), "last": (last,), "both ends": tuple(sorted({0, last}))}[weight.place]


def part(weight: Weight, degree: int, index: int) -> Part:
    """Returns the rectangle of the full tensor at position `index` of `degree` tensor ranks."""
    cut = [slice(0, n) for n in weight.shape]
    if weight.cut is not None:
        n = weight.shape[weight.cut] // degree
        cut[weight.cut] = slice(index * n, (index + 1) * n)
    return tuple(cut)


def grid_of(weight: Weight, grids: MegatronGrids) -> tuple[Grid, str]:
    """Returns the grid over which the weight is distributed, and the name of its tensor axis there."""
    return (grids.dense, "tp") if weight.expert is None else (grids.experts, "etp")


def degree(weight: Weight, grids: MegatronGrids) -> int:
    """Returns the number of ranks that split the weight: tensor ranks, or expert tensor ranks for an expert."""
    grid, axis = grid_of(weight, grids)
    return grid.size(axis)


def local_part(weight: Weight, shape: Shape, grids: MegatronGrids, rank: int) -> Part | None:
    """Returns the part of the weight that a world rank holds, or None."""
    grid, axis = grid_of(weight, grids)
    if grid.coordinate(rank, "pp") not in stages_of(weight, shape, grids):
        return None
    if weight.expert is not None and grid.coordinate(rank, "ep") != weight.expert // experts_per_rank(shape, grids):
        return None
    return part(weight, grid.size(axis), grid.coordinate(rank, axis))


def holders(weight: Weight, shape: Shape, grids: MegatronGrids) -> dict[int, Part]:
    """Returns world rank -> the part of the weight that it holds. Ranks with equal parts hold copies of each other."""
    grid, axis = grid_of(weight, grids)
    others = [name for name, _ in grid.axes if name not in (axis, "ep", "pp")]
    fixed = {} if weight.expert is None else {"ep": weight.expert // experts_per_rank(shape, grids)}
    found = {}
    for stage in stages_of(weight, shape, grids):
        for copy in range(grid.size(others[0])):
            for index in range(grid.size(axis)):
                rank = grid.at(**{axis: index, others[0]: copy, "pp": stage}, **fixed)
                found[rank] = part(weight, grid.size(axis), index)
    return found


def experts_per_rank(shape: Shape, grids: MegatronGrids) -> int:
    """Returns the number of routed experts that a rank of the trainer holds."""
    return shape.require_moe().experts // grids.experts.size("ep")


def parameter_name(weight: Weight, shape: Shape, grids: MegatronGrids, stage: int) -> str:
    """Returns the name of the megatron-core parameter (or buffer) that holds the weight in a stage's model chunk."""
    if weight.place == "both ends" and stage > 0:
        return "output_layer.weight"
    if weight.place != "layer":
        return weight.parameter
    name = weight.parameter
    if weight.expert is not None:
        name = name.format(e=weight.expert % experts_per_rank(shape, grids))
    return f"decoder.layers.{weight.require_layer() - stages(shape, grids)[stage].start}.{name}"
