"""What the plan supposes of a machine: one row a kind of device, every value settable by name in `[plan] assume`."""

import difflib
from dataclasses import dataclass, fields, replace

from r1zero.config import Config, UserError
from r1zero.distributed import host

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Machine:
    memory_gib: float
    """GiB of a device that all of a rank's memory together may take."""
    runtime_gib: float
    """GiB that driver, operator library and allocator's gaps take."""
    node_ranks: float
    """Devices, hence ranks, of a node."""
    host_memory_gb: float
    """GB of a node's host memory that pinned copies may take."""
    buffer_mb: float
    """MiB of one buffer of a communicator that has no size of its own, of which each live one has two:
    HCCL_BUFFSIZE of launch/env-a3.sh."""
    tflops: float
    """Dense bf16 peak of a device, 1e12 operations a second."""
    mfu_forward: float
    """Share of the peak reached by a forward pass: reference and prefill."""
    mfu_update: float
    """Share of the peak reached by forward, recomputation and backward together."""
    memory_gbs: float
    """GB a second from the device's own memory."""
    decode_share: float
    """Share of it reached while decoding."""
    decode_overhead_ms: float
    """Launches, collectives and scheduling of one decode step, whatever its batch."""
    seed_us: float
    """One seeded request's own random draw in one decode step; vLLM's samplers make them one by one."""
    link_gbs: float
    """GB a second that a device sends, and receives, in an all-to-all over all nodes."""
    host_link_gbs: float
    """GB a second between a device and pinned host memory."""
    storage_gbs: float
    """GB a second that all ranks together write to the run's folder."""
    prompt_share: float = 0.2
    """Mean prompt, as a share of rollout.max_prompt_tokens."""
    response_share: float = 0.6
    """Mean response, as a share of rollout.max_response_tokens."""
    expert_imbalance: float = 2.0
    """Tokens of the busiest rank's experts over the mean."""


MACHINES = {
    # A die shows 64 GiB, of which 60 are usable. Peak 376 and 1.6 TB/s are the maker's; the rest is estimated, and
    # gives the published 105 tokens a second and die for the 671B recipe within its own margins.
    "npu": Machine(
        memory_gib=60,
        runtime_gib=3,
        node_ranks=16,
        host_memory_gb=1400,
        buffer_mb=256,
        tflops=376,
        mfu_forward=0.30,
        mfu_update=0.25,
        memory_gbs=1600,
        decode_share=0.5,
        decode_overhead_ms=20,
        seed_us=30,
        link_gbs=20,
        host_link_gbs=20,
        storage_gbs=20,
    ),
    # An 80 GB card of the H100 kind, eight a node.
    "cuda": Machine(
        memory_gib=76,
        runtime_gib=1.5,
        node_ranks=8,
        host_memory_gb=1400,
        buffer_mb=16,
        tflops=989,
        mfu_forward=0.40,
        mfu_update=0.35,
        memory_gbs=3350,
        decode_share=0.6,
        decode_overhead_ms=10,
        seed_us=10,
        link_gbs=40,
        host_link_gbs=50,
        storage_gbs=10,
    ),
    # One core per rank, measured on an AMD EPYC with AVX512-BF16: 0.44 TFLOP/s in bf16, 0.089 in fp32. All ranks run on
    # this machine and share its memory: `machine_for` puts that in.
    "cpu": Machine(
        memory_gib=0,
        runtime_gib=0.5,
        node_ranks=0,
        host_memory_gb=0,
        buffer_mb=0,
        tflops=0.44,
        mfu_forward=0.2,
        mfu_update=0.2,
        memory_gbs=10,
        decode_share=0.5,
        decode_overhead_ms=4,
        seed_us=20,
        link_gbs=1,
        host_link_gbs=10,
        storage_gbs=0.5,
    ),
}


def machine_for(cfg: Config, size: int) -> Machine:
    """The device's row with the user's values in it. size: ranks of the world. Raises UserError for a name that no row
    has."""
    names = [f.name for f in fields(Machine)]
    for name in cfg.plan.assume:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise UserError(
                f"plan.assume has no {name}; the nearest known one is {nearest}, and all are {', '.join(names)}"
            )
        if cfg.plan.assume[name] < 0:
            raise UserError(f"plan.assume.{name} = {cfg.plan.assume[name]:g}; it cannot be negative")
    row = MACHINES[cfg.run.device]
    if cfg.run.device == "cpu":
        total = host.total_memory()
        row = replace(row, memory_gib=total / GIB / size, node_ranks=size, host_memory_gb=total / 1e9)
    return replace(row, **cfg.plan.assume)
