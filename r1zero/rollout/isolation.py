"""The environment that vLLM needs while it starts and runs, and the restoring of what it must not change."""

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
    """Set the variables with which vLLM configures data parallelism, and restore the environment afterwards.

    Variables are used because vLLM's argument counts the world twice if there are replicas. The restoring matters
    because vLLM sets LOCAL_WORLD_SIZE and LD_PRELOAD while it starts.
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
def as_world(ranks: tuple[int, ...]) -> Iterator[None]:
    """Let vLLM treat `ranks` as the whole world, while its collectives use their real world ranks."""
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
def preserve_generators(kind: str) -> Iterator[None]:
    """Restore the random generators of the process afterwards: vLLM seeds and uses them, but they are the trainer's."""
    python, numpy = random.getstate(), np.random.get_state()
    accelerators = [] if kind == "cpu" else [device.torch_device(kind).index]
    with torch.random.fork_rng(accelerators, device_type="cuda" if kind == "cpu" else kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
