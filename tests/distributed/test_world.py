"""Rank and size from any launcher's variables, and what a rank writes where all meet."""

import os
import pty
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from r1zero.config import CollectiveError, UserError, errors
from r1zero.distributed import device, world
from r1zero.distributed.world import Launch, read_launch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "environment, launch",
    [
        ({}, Launch(0, 1, 0, 1, "none")),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Launch(5, 8, 1, 4, "torchrun")),
        (
            {
                "OMPI_COMM_WORLD_RANK": "2",
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            Launch(2, 4, 0, 2, "openmpi"),
        ),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            Launch(1, 2, 1, 2, "mpich"),
        ),
        (
            {
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "6",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
            },
            Launch(3, 6, 1, 2, "srun"),
        ),
        # The shell of an sbatch script has a SLURM_PROCID but is no step: a world of one.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, Launch(0, 1, 0, 1, "none")),
        # srun --mpi=pmi2, where Slurm sets MPICH's variables beside its own.
        (
            {
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "6",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
                "PMI_RANK": "3",
                "PMI_SIZE": "6",
                "PMI_FD": "9",
            },
            Launch(3, 6, 1, 2, "srun"),
        ),
        # MPICH's launcher, which starts its daemons by srun.
        (
            {
                "SLURM_PROCID": "1",
                "SLURM_STEP_NUM_TASKS": "2",
                "PMI_RANK": "5",
                "PMI_SIZE": "8",
                "MPI_LOCALRANKID": "1",
                "MPI_LOCALNRANKS": "4",
            },
            Launch(5, 8, 1, 4, "mpich"),
        ),
        # torchrun started by mpirun or srun, once a node: its agent's word counts.
        (
            {
                "RANK": "9",
                "WORLD_SIZE": "16",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "8",
                "TORCHELASTIC_RUN_ID": "none",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
            },
            Launch(9, 16, 1, 8, "torchrun"),
        ),
        (
            {
                "RANK": "9",
                "WORLD_SIZE": "16",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "8",
                "TORCHELASTIC_RUN_ID": "none",
                "PMI_RANK": "1",
                "PMI_SIZE": "2",
            },
            Launch(9, 16, 1, 8, "torchrun"),
        ),
        # torchrun's names set by hand to what srun says.
        (
            {
                "RANK": "3",
                "WORLD_SIZE": "6",
                "LOCAL_RANK": "1",
                "LOCAL_WORLD_SIZE": "2",
                "SLURM_PROCID": "3",
                "SLURM_STEP_NUM_TASKS": "6",
            },
            Launch(3, 6, 1, 2, "torchrun"),
        ),
        # By hand in the shell of srun --pty.
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
            Launch(1, 2, 1, 2, "torchrun"),
        ),
        # mpirun inside a Slurm allocation: MPI's word counts.
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_STEP_NUM_TASKS": "1",
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
            },
            Launch(1, 2, 1, 2, "openmpi"),
        ),
    ],
)
def test_launchers(environment, launch):
    assert read_launch(environment) == launch


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "torchrun: RANK='x' is not a number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "torchrun: RANK='-1' is not a number"),
        ({"RANK": "1", "WORLD_SIZE": "2 "}, "torchrun: WORLD_SIZE='2 ' is not a number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": ""}, "torchrun: LOCAL_RANK='' is not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "torchrun: rank 2 (RANK) lies outside its world of 2 (WORLD_SIZE)"),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "x2"},
            "srun: SLURM_STEP_TASKS_PER_NODE='x2' is",
        ),
        # A container's place among containers, under mpirun and under srun.
        (
            {"RANK": "0", "WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "16"},
            "RANK=0 WORLD_SIZE=1 and OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=16 contradict each other; unset those",
        ),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "16"},
            "RANK=0 WORLD_SIZE=2 and SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=16 contradict each other",
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1", "PMI_SIZE": "4"},
            "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 and PMI_RANK=1 PMI_SIZE=4 contradict each other",
        ),
    ],
)
def test_nonsense_is_refused(environment, words):
    with pytest.raises(UserError) as caught:
        read_launch(environment)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "environment, speaks",
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1"}, False),
        ({"RANK": "0", "OMPI_COMM_WORLD_RANK": "1"}, False),
        ({"RANK": "1", "OMPI_COMM_WORLD_RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"SLURM_PROCID": "x"}, False),
    ],
)
def test_one_rank_says_what_is_wrong_with_the_launch(environment, speaks):
    assert (world.stand_in(environment).rank == 0) == speaks


@pytest.fixture
def bare(monkeypatch):
    """An environment without a launcher."""
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI", "SLURM_", "MASTER_", "TORCHELASTIC")) or name in (
            "RANK",
            "WORLD_SIZE",
            "GLOO_SOCKET_IFNAME",
        ):
            monkeypatch.delenv(name)
    monkeypatch.setattr(errors, "ERROR_WAIT_S", 0.0)
    return monkeypatch


@pytest.mark.parametrize(
    "launcher, variables, words",
    [
        (
            "torchrun",
            {},
            "torchrun: MASTER_ADDR='' MASTER_PORT='29500' is not a valid address; set them to the first node",
        ),
        ("torchrun", {"MASTER_ADDR": "node1", "MASTER_PORT": "http"}, "MASTER_PORT='http' is not a valid address"),
        (
            "srun",
            {"MASTER_ADDR": "node1", "MASTER_PORT": "99999"},
            "srun: MASTER_ADDR='node1' MASTER_PORT='99999' is not a valid address",
        ),
        ("srun", {}, "srun: SLURM_JOB_ID='' is not the number of a job"),
        (
            "srun",
            {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "PATH": ""},
            (
                "srun: scontrol does not say which is the first of the nodes SLURM_STEP_NODELIST='node[1-2]' "
                "(No such file or directory); set"
            ),
        ),
        ("srun", {"SLURM_JOB_ID": "7", "PATH": ""}, "SLURM_STEP_NODELIST='' (No such file or directory)"),
        ("none", {"GLOO_SOCKET_IFNAME": "eth77"}, "has no network interface 'eth77'; it has lo"),
        ("none", {"GLOO_SOCKET_IFNAME": "lo,eth77"}, "has no network interface 'eth77'; it has lo"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_where_ranks_cannot_meet_one_of_them_says_why(launcher, variables, words, rank, bare):
    for name, value in variables.items():
        bare.setenv(name, value)
    with pytest.raises(UserError) as caught:
        world.join(Launch(rank, 2, rank, 2, launcher), device.DEVICES["cpu"], 5)
    assert words in str(caught.value) and isinstance(caught.value, CollectiveError) == (rank == 1)


@pytest.mark.parametrize(
    "variable, value, kind, fits",
    [
        ("GLOO_SOCKET_IFNAME", "l", "cpu", False),
        ("NCCL_SOCKET_IFNAME", "l", "cuda", True),
        ("NCCL_SOCKET_IFNAME", "=l", "cuda", False),
        ("NCCL_SOCKET_IFNAME", "=lo", "cuda", True),
        ("NCCL_SOCKET_IFNAME", "^docker", "cuda", True),
        ("NCCL_SOCKET_IFNAME", "ib", "cpu", True),
        ("HCCL_SOCKET_IFNAME", "ib", "npu", False),
        ("HCCL_SOCKET_IFNAME", "ib", "cuda", True),
    ],
)
def test_interfaces_are_read_as_their_library_reads_them(variable, value, kind, fits, bare):
    bare.setenv(variable, value)
    with nullcontext() if fits else pytest.raises(UserError, match=f"{variable}='{re.escape(value)}': "):
        world._check_interfaces(device.DEVICES[kind], 0)


@pytest.mark.parametrize("nodes", ["node1", "node-1.cluster_2"])
def test_one_node_needs_no_scontrol(nodes, bare):
    for name, value in {"PATH": "", "SLURM_JOB_ID": "20007", "SLURM_STEP_NODELIST": nodes}.items():
        bare.setenv(name, value)
    assert world._rendezvous(Launch(1, 2, 1, 2, "srun")) == (nodes, 20007)
    assert world._rendezvous(Launch(0, 1, 0, 1, "srun"))[0] == "127.0.0.1", "alone under srun --pty"


ANOTHER_MPI = """
from r1zero.config import errors
from r1zero.distributed import device, world
errors.ERROR_WAIT_S = 0
try:
    world.join(world.read_launch(), device.DEVICES["cpu"], 5)
except errors.UserError as error:
    print(type(error).__name__, error)
"""


def test_a_launcher_of_another_mpi_is_told_from_ours(bare):
    """MPICH's variables, and mpi4py is built for Open MPI: each process is a world of its own to it."""
    for rank, kind in ((0, "UserError"), (1, "CollectiveError")):
        done = subprocess.run(
            [sys.executable, "-c", ANOTHER_MPI],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={**os.environ, "PMI_RANK": str(rank), "PMI_SIZE": "2"},
        )
        assert done.stdout.startswith(
            f"{kind} PMI_RANK={rank} PMI_SIZE=2: the launcher has started 2 ranks, but mpi4py's MPI (Open MPI"
        )
        assert "sees 1; start with the mpirun of that MPI" in done.stdout


COLOURS = """
from rich.console import Console
from r1zero.distributed import device, world
launch = world.read_launch()
world.join(launch, device.DEVICES["cpu"], 60)
Console().print("[bold red]word[/]")
world.leave(launch)
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["mpirun", "-np", "1"]])
@pytest.mark.parametrize("to", ["pipe", "terminal"])
def test_colours_go_to_terminals_only(launcher, to, bare):
    """Open MPI gives its ranks a terminal, wherever its own output goes."""
    bare.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    bare.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        bare.delenv(name, raising=False)
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        bare.setenv(name, "1")
    read, write = pty.openpty() if to == "terminal" else os.pipe()
    done = subprocess.run(
        [*launcher, sys.executable, "-c", COLOURS], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=write, timeout=120
    )
    os.close(write)
    said = os.read(read, 4096).decode()
    os.close(read)
    assert done.returncode == 0 and "word" in said and ("\x1b[" in said) == (to == "terminal"), said


JOIN = """
import os
from datetime import timedelta
import torch.distributed as dist
from r1zero.distributed import device, world

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port),
                  TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="3")
world.join(world.read_launch(), device.DEVICES["cpu"], 60)
print(*store.list_keys())
"""


def test_a_restarted_attempt_has_keys_of_its_own_in_torchruns_store():
    """It finds those of the failed attempt otherwise, addresses of processes that are gone among them, and waits for
    ever."""
    done = subprocess.run(
        [sys.executable, "-c", JOIN], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    keys = done.stdout.split()
    assert keys and all(key.startswith("attempt_3/") for key in keys)
