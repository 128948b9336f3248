"""Where the ranks of any launcher meet, and what a rank writes there."""

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
from r1zero.distributed.launcher import Launch

ROOT = Path(__file__).parents[2]


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
from r1zero.distributed import device, launcher, world
errors.ERROR_WAIT_S = 0
try:
    world.join(launcher.read_launch(), device.DEVICES["cpu"], 5)
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
from r1zero.distributed import device, launcher, world
launch = launcher.read_launch()
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
from r1zero.distributed import device, launcher, world

store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port),
                  TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="3")
world.join(launcher.read_launch(), device.DEVICES["cpu"], 60)
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
