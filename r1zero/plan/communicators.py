"""The groups that talk on the device, whom they join, and what their buffers take."""

import math
from dataclasses import dataclass

from r1zero.distributed import device
from r1zero.distributed.layout import Grid, Layout
from r1zero.model.shape import Shape


@dataclass(frozen=True)
class Kind:
    """Groups of one use."""

    name: str
    axes: tuple[str, ...]
    grid: str
    """dense, experts, reference or rollout: whose axes they are."""
    note: str
    buffer: str = ""
    """megatron-core's name of the group, by which device.BUFFERS_MB sizes it; "engine": vllm-ascend's own size; empty:
    HCCL_BUFFSIZE."""
    buffered: bool = True
    """False: its collectives run on gloo, in host memory."""


# The groups that megatron-core 0.16.1 and vLLM 0.23 use while training R1-Zero; they make more, which stay silent and
# cost nothing: a communicator's buffers come with its first collective.
TRAIN = (
    Kind("train tp", ("tp",), "dense", "sequence parallel gather and scatter, vocabulary", "tp"),
    Kind("train dp", ("dp",), "dense", "dense gradients and weights", "dp_cp"),
    Kind("train pp", ("pp",), "dense", "activations between stages", "pp"),
    Kind("train tp-dp-pp", ("tp", "dp", "pp"), "dense", "gradient norm", "intra_dist_opt_instance"),
    Kind("train tp-dp", ("tp", "dp"), "dense", "tokens counted for each expert", "tp_dp_cp"),
    Kind("train ep", ("ep",), "experts", "tokens to experts and back", "ep"),
    Kind("train etp", ("etp",), "experts", "tokens to the parts of an expert and back", "ep_tp"),
    Kind("train etp-ep", ("etp", "ep"), "experts", "numbers of tokens for each expert", "tp_ep_mp"),
    Kind("train edp", ("edp",), "experts", "expert gradients", "ep_dp"),
)
REFERENCE = (
    Kind("reference tp", ("tp",), "reference", "sequence parallel gather and scatter, vocabulary", "tp"),
    Kind("reference dp", ("dp",), "reference", "number of micro-batches", "dp_cp"),
    Kind("reference pp", ("pp",), "reference", "activations between stages", "pp"),
    Kind("reference ep", ("ep",), "reference experts", "tokens to experts and back", "ep"),
    Kind("reference etp", ("etp",), "reference experts", "tokens to the parts of an expert and back", "ep_tp"),
    Kind("reference etp-ep", ("etp", "ep"), "reference experts", "numbers of tokens for each expert", "tp_ep_mp"),
)
ROLLOUT = (
    Kind("engine tp", ("tp",), "rollout", "hidden states, logits", "engine"),
    Kind("engine dp", ("dp",), "rollout", "who has unfinished requests", buffered=False),
    Kind("engine ep", ("tp", "dp"), "rollout", "tokens to experts and back (prefill)", "engine"),
    Kind("engine mc2", ("tp", "dp"), "rollout", "tokens to experts and back (decode), fused operators"),
)


@dataclass(frozen=True)
class Group:
    kind: Kind
    size: int
    count: int
    examples: tuple[tuple[int, ...], ...]
    nodes: int
    """Most nodes that one group spans."""


ENGINE_MB = 200
"""vllm-ascend 0.23.0's own (utils.get_default_buffer_config)."""


def buffer_mb(kind: Kind, device_kind: str, machine_mb: float) -> float:
    """MiB of one of the kind's two buffers."""
    if device_kind != "npu" or not kind.buffer:
        return machine_mb
    return ENGINE_MB if kind.buffer == "engine" else device.BUFFERS_MB[kind.buffer]


def grids(layout: Layout) -> dict[str, Grid]:
    found = {"dense": layout.train.dense, "experts": layout.train.experts, "rollout": layout.rollout}
    if layout.reference:
        found |= {"reference": layout.reference.dense, "reference experts": layout.reference.experts}
    return found


def kinds(layout: Layout, shape: Shape, expert_parallel: bool, device_kind: str) -> list[Kind]:
    found = []
    for kind in TRAIN + (REFERENCE if layout.reference else ()) + ROLLOUT:
        experts = kind.name.partition(" ")[2] in ("tp-dp", "ep", "etp", "etp-ep", "edp", "mc2")
        if (experts and not shape.moe) or (kind.name in ("engine ep", "engine mc2") and not expert_parallel):
            continue
        if kind.name == "engine mc2" and device_kind != "npu":
            continue
        if kind.name == "train edp" and layout.train.experts.size("ep") == 1:
            continue  # megatron-core reduces the gradients of experts with the dense ones then
        if math.prod(grids(layout)[kind.grid].size(axis) for axis in kind.axes) > 1:
            found.append(kind)
    return found


def groups(layout: Layout, shape: Shape, expert_parallel: bool, device_kind: str, node_ranks: int) -> list[Group]:
    found = []
    for kind in kinds(layout, shape, expert_parallel, device_kind):
        every = grids(layout)[kind.grid].groups(*kind.axes)
        nodes = max(len({rank // node_ranks for rank in group}) for group in every)
        found.append(
            Group(kind, len(every[0]), len(every), tuple(every[:2] + every[-1:] if len(every) > 2 else every), nodes)
        )
    return found


def mc2_buffer(shape: Shape, layout: Layout, max_num_seqs: int) -> int:
    """Bytes that one buffer of the engine's fused dispatch needs (npu_moe_distribute_dispatch_v2 in Ascend's
    op-plugin).

    Each rank of a tensor group dispatches its share of the decode batch; every rank may get all of it.
    """
    ranks = layout.rollout.size("tp") * layout.rollout.size("dp")
    tokens = -(-max_num_seqs // layout.rollout.size("tp"))
    row = 2 * shape.hidden_size
    dispatch = shape.moe.experts // ranks * tokens * ranks * _align(_align(row, 32) + 64, 512)
    combine = (shape.moe.topk + shape.moe.shared_experts) * tokens * _align(row, 512)
    return 2 * (dispatch + combine)


def _align(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
