"""The process groups that communicate on the device, their ranks, and the memory of their buffers."""

import math
from dataclasses import dataclass

from r1zero.distributed import device
from r1zero.distributed.layout import Grid, Layout
from r1zero.model.shape import Shape


@dataclass(frozen=True)
class Kind:
    """The process groups of one purpose."""

    name: str
    axes: tuple[str, ...]
    grid: str
    """The grid that has these axes: dense, experts, reference or rollout."""
    note: str
    buffer: str = ""
    """megatron-core's name of the group, by which device.BUFFERS_MB sizes its buffers. "engine": vllm-ascend's size.
    Empty: HCCL_BUFFSIZE."""
    buffered: bool = True
    """False: its collectives run on gloo, in host memory."""


# The groups that megatron-core 0.16.1 and vLLM 0.23 use in training R1-Zero. They create more groups, which cost
# nothing because they are never used: a communicator allocates its buffers at its first collective.
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
    Kind("engine dp", ("dp",), "rollout", "which engines have unfinished requests", buffered=False),
    Kind("engine ep", ("tp", "dp"), "rollout", "tokens to experts and back (prefill)", "engine"),
    Kind("engine mc2", ("tp", "dp"), "rollout", "tokens to experts and back (decode), fused operators"),
)


@dataclass(frozen=True)
class Group:
    """The process groups of one kind in a layout."""

    kind: Kind
    size: int
    count: int
    examples: tuple[tuple[int, ...], ...]
    nodes: int
    """Largest number of nodes that one group spans."""


ENGINE_MB = 200
"""Default of vllm-ascend 0.23.0 (utils.get_default_buffer_config)."""


def buffer_mb(kind: Kind, device_kind: str, machine_mb: float) -> float:
    """Returns the MiB of one of the two buffers of a communicator of this kind."""
    if device_kind != "npu" or not kind.buffer:
        return machine_mb
    return ENGINE_MB if kind.buffer == "engine" else device.BUFFERS_MB[kind.buffer]


def grids(layout: Layout) -> dict[str, Grid]:
    """Returns the grids of a layout by the names that Kind.grid uses."""
    found = {"dense": layout.train.dense, "experts": layout.train.experts, "rollout": layout.rollout}
    if layout.reference:
        found |= {"reference": layout.reference.dense, "reference experts": layout.reference.experts}
    return found


def kinds(layout: Layout, shape: Shape, expert_parallel: bool, device_kind: str) -> list[Kind]:
    """Returns the kinds of groups that a run uses and that have more than one rank."""
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
    """Returns the process groups of a run. node_ranks: number of ranks per node."""
    found = []
    for kind in kinds(layout, shape, expert_parallel, device_kind):
        every = grids(layout)[kind.grid].groups(*kind.axes)
        nodes = max(len({rank // node_ranks for rank in group}) for group in every)
        found.append(
            Group(kind, len(every[0]), len(every), tuple(every[:2] + every[-1:] if len(every) > 2 else every), nodes)
        )
    return found


def mc2_buffer(shape: Shape, layout: Layout, max_num_seqs: int) -> int:
    """Returns the bytes that one buffer of the engine's fused expert dispatch needs.

    Source: npu_moe_distribute_dispatch_v2 in Ascend's op-plugin. Each rank of a tensor group dispatches its share of
    the decode batch, and any rank may receive all of it.
    """
    ranks = layout.rollout.size("tp") * layout.rollout.size("dp")
    tokens = -(-max_num_seqs // layout.rollout.size("tp"))
    row = 2 * shape.hidden_size
    moe = shape.require_moe()
    dispatch = moe.experts // ranks * tokens * ranks * _align(_align(row, 32) + 64, 512)
    combine = (moe.topk + moe.shared_experts) * tokens * _align(row, 512)
    return 2 * (dispatch + combine)


def _align(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
