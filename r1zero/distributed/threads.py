"""The number of threads of a rank's operators on a CPU, from the cores that it may use. Needs no torch to import."""

import os
import socket
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from r1zero.config import Run
from r1zero.distributed import host

VARIABLE = "OMP_NUM_THREADS"
LEAST_WIDTH = 256
"""Smallest hidden size of a model that gains from a second thread. With 256 a step of one rank takes 0.86 of the time
with two threads, with 128 it takes 1.19 times as long (python -m tests.bench.step configs/cpu.toml --ranks 1, on two
cores), because its matrices are too small to be worth dividing."""


def given(run: Run) -> int | None:
    """Returns the number that the user chose, in run.threads or else in the environment; None: neither.

    Called before the device is started, which sets the variable.
    """
    if run.threads != "auto":
        return run.threads
    value = os.environ.get(VARIABLE, "").partition(",")[0]
    return int(value) if value.isdecimal() and int(value) else None


def start(run: Run, chosen: int | None, width: int) -> int:
    """Set and return the number of threads of torch and of the engine. Collective over the world.

    chosen: what `given` returned. width: the model's hidden size. Without a choice, the ranks of a host that runs on
    the CPU share its cores; the host of another device keeps what its environment says, because the vendors' libraries
    have threads of their own.
    """
    import torch
    import torch.distributed as dist

    if chosen is None and run.device == "cpu":
        mine = (socket.gethostname(), frozenset(os.sched_getaffinity(0)))
        found: list[tuple[str, frozenset[int]]] = [mine] * dist.get_world_size()
        dist.all_gather_object(found, mine)
        chosen = share([cores for name, cores in found if name == mine[0]], mine[1], host.cpu_quota())
        chosen = chosen if width >= LEAST_WIDTH else 1
    if chosen is not None:
        torch.set_num_threads(chosen)
    return torch.get_num_threads()


def share(of_ranks: Sequence[AbstractSet[int]], mine: AbstractSet[int], quota: float) -> int:
    """Returns the number of whole cores for one rank, at least 1.

    of_ranks: for each rank of the host, itself included, the cores that it may run on. A launcher may have bound each
    rank to cores of its own, or none. A core that several ranks may use is divided among them, so that no threads
    compete. quota: cores' worth of time that all of them may use together.
    """
    users = Counter(core for cores in of_ranks for core in cores)
    own = sum(1 / users[core] for core in mine)
    return max(1, int(min(own, quota / len(of_ranks)) + 1e-9))
