"""What the plan assumes of a machine: one row per kind of device. `[plan] assume` overrides any value by name."""

from dataclasses import dataclass, fields, replace

from r1zero.config import Config, UserError, suggest
from r1zero.distributed import host

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The capacities and rates of a machine and its devices."""

    memory_gib: float
    """GiB of a device that a rank may use in total."""
    runtime_gib: float
    """GiB used by the driver, the operator library and fragmentation."""
    node_ranks: float
    """Number of devices, and therefore of ranks, in a node."""
    host_memory_gb: float
    """GB of a node's host memory that pinned copies may use."""
    buffer_mb: float
    """MiB of each of the two buffers of a live communicator that has no size of its own: HCCL_BUFFSIZE in
    launch/env-a3.sh."""
    graph_mib: float
    """MiB that a recorded graph of the engine needs, beside the activations, which all graphs share."""
    tflops: float
    """Dense bf16 peak of a device, in 1e12 operations/s."""
    mfu_forward: float
    """Share of the peak that a forward pass reaches (reference and prefill)."""
    mfu_update: float
    """Share of the peak that forward, recomputation and backward reach together."""
    memory_gbs: float
    """Bandwidth of the device's own memory, in GB/s."""
    decode_share: float
    """Share of that bandwidth that decoding reaches."""
    decode_overhead_ms: float
    """Milliseconds per decode step for launches, collectives and scheduling, independent of the batch."""
    link_gbs: float
    """GB/s that a device sends, and receives, in an all-to-all over all nodes."""
    host_link_gbs: float
    """GB/s between a device and pinned host memory."""
    storage_gbs: float
    """GB/s that all ranks together write to the run's folder."""
    prompt_share: float = 0.2
    """Mean length of a prompt, as a share of rollout.max_prompt_tokens."""
    response_share: float = 0.6
    """Mean length of a response, as a share of rollout.max_response_tokens."""
    expert_imbalance: float = 2.0
    """Number of tokens for the busiest rank's experts, relative to the mean."""


MACHINES = {
    # Graphs: the logs in vLLM's pull request 22897 and in vllm-ascend's issue 4807 show 24 to 26 MiB for each.
    # A die reports 64 GiB, of which 60 are usable. The peak of 376 and the 1.6 TB/s are the manufacturer's. The other
    # rates are the expected ones; see RATES.
    "npu": Machine(
        memory_gib=60,
        runtime_gib=3,
        node_ranks=16,
        host_memory_gb=1400,
        buffer_mb=256,
        graph_mib=26,
        tflops=376,
        mfu_forward=0.20,
        mfu_update=0.18,
        memory_gbs=1600,
        decode_share=0.5,
        decode_overhead_ms=50,
        link_gbs=10,
        host_link_gbs=20,
        storage_gbs=20,
    ),
    # An H100 with 80 GB, eight per node.
    "cuda": Machine(
        memory_gib=76,
        runtime_gib=1.5,
        node_ranks=8,
        host_memory_gb=1400,
        buffer_mb=16,
        graph_mib=26,
        tflops=989,
        mfu_forward=0.40,
        mfu_update=0.35,
        memory_gbs=3350,
        decode_share=0.6,
        decode_overhead_ms=10,
        link_gbs=40,
        host_link_gbs=50,
        storage_gbs=10,
    ),
    # One core per rank, measured on an AMD EPYC with AVX512-BF16: 0.44 TFLOP/s in bf16, 0.089 in fp32. All ranks run on
    # this machine and share its memory, which `machine_for` fills in.
    "cpu": Machine(
        memory_gib=0,
        runtime_gib=0.5,
        node_ranks=0,
        host_memory_gb=0,
        buffer_mb=0,
        graph_mib=0,
        tflops=0.44,
        mfu_forward=0.2,
        mfu_update=0.2,
        memory_gbs=10,
        decode_share=0.5,
        decode_overhead_ms=4,
        link_gbs=1,
        host_link_gbs=10,
        storage_gbs=0.5,
    ),
}


@dataclass(frozen=True)
class Rates:
    """Rates that differ from those of the device's row, and where they come from."""

    source: str
    values: dict[str, float]


RATES = {
    "npu": {
        "pessimistic": Rates(
            "verl's recipe for DeepSeek-V3 on 256 dies: 11.3 % of the peak in the update, 10.5 % in forward passes, "
            "235 ms per decode step",
            dict(mfu_forward=0.105, mfu_update=0.113, decode_overhead_ms=190, link_gbs=5),
        ),
        "expected": Rates("MindSpeed-RL's 105 tokens/s per die for DeepSeek-V3 on 384 dies", {}),
        "optimistic": Rates(
            "an estimate: the kernels of the vendor's own benchmarks in every phase",
            dict(mfu_forward=0.30, mfu_update=0.25, decode_overhead_ms=20, link_gbs=20),
        ),
    },
    "cuda": {
        "pessimistic": Rates(
            "an estimate: half of the expected rates",
            dict(mfu_forward=0.20, mfu_update=0.175, decode_overhead_ms=20, link_gbs=20),
        ),
        "expected": Rates("an estimate for H100 with InfiniBand; not calibrated on a published run", {}),
        "optimistic": Rates(
            "an estimate: the best published shares of the peak for dense training",
            dict(mfu_forward=0.50, mfu_update=0.45, decode_overhead_ms=5),
        ),
    },
    "cpu": {"expected": Rates("measured on one machine; another processor may differ by several times", {})},
}
"""run.device -> name of a set of rates -> the rates."""


def machine_for(cfg: Config, size: int, rates: str = "expected") -> Machine:
    """Returns the device's row with a set of RATES, and with the user's overrides. size: ranks of the world.

    Raises UserError for a name that no row has, or a negative value.
    """
    names = [f.name for f in fields(Machine)]
    for name in cfg.plan.assume:
        if name not in names:
            raise UserError(f"plan.assume has no {name}; {suggest(name, names, spell=str)}")
        if cfg.plan.assume[name] < 0:
            raise UserError(f"plan.assume.{name} = {cfg.plan.assume[name]:g}; it cannot be negative")
    row = MACHINES[cfg.run.device]
    if cfg.run.device == "cpu":
        total = host.total_memory()
        row = replace(row, memory_gib=total / GIB / size, node_ranks=size, host_memory_gb=total / 1e9)
    return replace(row, **{**RATES[cfg.run.device][rates].values, **cfg.plan.assume})
