"""Finds rank and world size for any launcher, from the variables that it sets. Needs neither torch nor MPI."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from r1zero.config import UserError


@dataclass(frozen=True)
class Launch:
    """What the launcher told this process."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str


# launcher: its variables for rank, size, local rank, local size. The first whose rank and size are set is used:
# torchrun before MPI before Slurm, because each can run inside the next.
LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "openmpi": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpich": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}
MPI_LAUNCHERS = ("openmpi", "mpich")
_NUMBER = re.compile(r"(\d+)")
_TASKS = re.compile(r"(\d+)(\(x\d+\))?(,.*)?")
"""Slurm writes "2(x3)" for three nodes of two tasks. The first number is used, because nodes are filled alike."""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Read the launcher's variables. Raises UserError if they are not numbers or contradict each other."""
    found = {
        launcher: _read(launcher, environment)
        for launcher, (rank, size, *_) in LAUNCHERS.items()
        if rank in environment and size in environment
    }
    if {"mpich", "srun"} <= set(found) and _same(found["mpich"], found["srun"]):
        del found["mpich"]  # the variables come from Slurm's own PMI, not from MPICH's launcher
    # torchrun's agent sets TORCHELASTIC_RUN_ID and may run inside any launcher. Without it, RANK and WORLD_SIZE may
    # come from a container platform, which counts containers instead of processes.
    bare = "TORCHELASTIC_RUN_ID" not in environment
    for inner, outer in combinations(found.values(), 2):
        by_hand = inner.launcher == "torchrun" and bare and outer != Launch(0, 1, 0, 1, "srun")
        if (by_hand or (outer.launcher == "mpich" and inner.launcher == "openmpi")) and not _same(inner, outer):
            raise UserError(
                f"{spelt(inner)} and {spelt(outer)} contradict each other; unset those that do not come from the "
                "launcher of this job"
            )
    return next(iter(found.values()), Launch(0, 1, 0, 1, "none"))


def stand_in(environment: Mapping[str, str] = os.environ) -> Launch:
    """Returns a substitute until `read_launch` succeeds, with rank 0 on the one process that prints common errors."""
    ranks = (environment.get(LAUNCHERS[launcher][0]) for launcher in (*MPI_LAUNCHERS, "srun", "torchrun"))
    rank = next(filter(None, ranks), "0")
    return Launch(0 if rank == "0" else 1, 1, 0, 1, "none")


def _same(a: Launch, b: Launch) -> bool:
    return (a.rank, a.size) == (b.rank, b.size)


def spelt(launch: Launch) -> str:
    """Returns the launcher's variables for rank and size with their values, as a shell would state them."""
    rank, size, *_ = LAUNCHERS[launch.launcher]
    return f"{rank}={launch.rank} {size}={launch.size}"


def _read(launcher: str, environment: Mapping[str, str]) -> Launch:
    names = LAUNCHERS[launcher]
    defaults = ("", "", environment[names[0]], environment[names[1]])
    numbers = []
    for name, default in zip(names, defaults, strict=True):
        text = environment.get(name, default)
        match = (_TASKS if name == "SLURM_STEP_TASKS_PER_NODE" else _NUMBER).fullmatch(text)
        if not match:
            raise UserError(f"{launcher}: {name}={text!r} is not a number")
        numbers.append(int(match[1]))
    rank, size, local_rank, local_size = numbers
    launch = Launch(rank, size, local_rank, local_size, launcher)
    if launch.rank >= launch.size:
        raise UserError(
            f"{launcher}: rank {launch.rank} ({names[0]}) lies outside its world of {launch.size} ({names[1]})"
        )
    return launch
