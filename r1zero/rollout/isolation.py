"""What vLLM must find around it while it starts and works, and what it must leave as it was."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from r1zero.distributed import device
from r1zero.distributed.layout import Layout
from r1zero.distributed.subworld import subworld
from r1zero.patches import patched


@contextmanager
def environment(layout: Layout, rank: int) -> Iterator[None]:
    """Data parallelism is told to vLLM by variables: its argument counts the world twice where there are replicas.

    Afterwards the environment is as it was: vLLM writes LOCAL_WORLD_SIZE and LD_PRELOAD while it starts.
    """
    variables = {}
    if layout.rollout.size("dp") > 1:
        place = str(layout.rollout.coordinate(rank, "dp"))
        variables = {
            "VLLM_DP_SIZE": str(layout.rollout.size("dp")),
            "VLLM_DP_RANK": place,
            "VLLM_DP_RANK_LOCAL": place,
            "VLLM_DP_MASTER_IP": os.environ["MASTER_ADDR"],
            "VLLM_DP_MASTER_PORT": os.environ["MASTER_PORT"],
        }
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def world_of(ranks: tuple[int, ...]) -> Iterator[None]:
    """vLLM lays its grid over `ranks` as if they were the world, and keeps their world ranks for its collectives."""
    if len(ranks) == dist.get_world_size():
        yield
        return

    def over_ranks(init: Callable[..., None]) -> Callable[..., None]:
        def over(self: Any, group_ranks: list[list[int]], *args: Any, **kwargs: Any) -> None:
            init(self, [[ranks[r] for r in group] for group in group_ranks], *args, **kwargs)

        return over

    with subworld(ranks, renumber=False), patched({"vllm grid over some ranks": over_ranks}):
        yield


@contextmanager
def generators_kept(kind: str) -> Iterator[None]:
    """vLLM seeds the process's generators and draws from them; they are the trainer's, and stay as they are."""
    python, numpy = random.getstate(), np.random.get_state()
    accelerators = [] if kind == "cpu" else [device.torch_device(kind).index]
    with torch.random.fork_rng(accelerators, device_type="cuda" if kind == "cpu" else kind):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
