"""Any launcher's variables to rank and size, read once and restated under torchrun's names; then the process group."""

import os
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from types import TracebackType

from r1zero.config import UserError, found_alike, reason
from r1zero.distributed.device import Device


@dataclass(frozen=True)
class Launch:
    rank: int
    size: int
    local_rank: int
    local_size: int
    launcher: str


# launcher: the variables of rank, size, local rank, local size. The first row whose rank and size are set is taken:
# torchrun before MPI before Slurm, as each can run inside the next.
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
"""Slurm writes "2(x3)" for three nodes of two tasks; the first number serves, as nodes are filled alike."""


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Needs neither torch nor MPI. Raises UserError where variables are not numbers or contradict each other."""
    found = {
        launcher: _read(launcher, environment)
        for launcher, (rank, size, *_) in LAUNCHERS.items()
        if rank in environment and size in environment
    }
    if {"mpich", "srun"} <= set(found) and _same(found["mpich"], found["srun"]):
        del found["mpich"]  # Slurm's own PMI, and not MPICH's launcher
    # torchrun's agent sets TORCHELASTIC_RUN_ID and may run inside any launcher. Without it, RANK and WORLD_SIZE may
    # come from a container platform, which counts containers and not processes.
    bare = "TORCHELASTIC_RUN_ID" not in environment
    for inner, outer in combinations(found.values(), 2):
        by_hand = inner.launcher == "torchrun" and bare and outer != Launch(0, 1, 0, 1, "srun")
        if (by_hand or (outer.launcher == "mpich" and inner.launcher == "openmpi")) and not _same(inner, outer):
            raise UserError(
                f"{_spelt(inner)} and {_spelt(outer)} contradict each other; unset those that do not come from the "
                "launcher of this job"
            )
    return next(iter(found.values()), Launch(0, 1, 0, 1, "none"))


def stand_in(environment: Mapping[str, str] = os.environ) -> Launch:
    """Until `read_launch` has found the launch: of rank 0 on the one process that says what all of them find."""
    ranks = (environment.get(LAUNCHERS[launcher][0]) for launcher in (*MPI_LAUNCHERS, "srun", "torchrun"))
    rank = next(filter(None, ranks), "0")
    return Launch(0 if rank == "0" else 1, 1, 0, 1, "none")


def _same(a: Launch, b: Launch) -> bool:
    return (a.rank, a.size) == (b.rank, b.size)


def _spelt(launch: Launch) -> str:
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
    launch = Launch(*numbers, launcher)
    if launch.rank >= launch.size:
        raise UserError(
            f"{launcher}: rank {launch.rank} ({names[0]}) lies outside its world of {launch.size} ({names[1]})"
        )
    return launch


def join(launch: Launch, device: Device, timeout_s: int) -> None:
    """Meet the other ranks: rendezvous, torchrun's names in the environment, the default process group.

    Raises UserError where the launcher's variables do not say how, or nobody is met.
    """
    _check_interfaces(device, launch.local_rank)
    address, port = _rendezvous(launch)
    os.environ.update(
        RANK=str(launch.rank),
        WORLD_SIZE=str(launch.size),
        LOCAL_RANK=str(launch.local_rank),
        LOCAL_WORLD_SIZE=str(launch.local_size),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    if address == "127.0.0.1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a laptop's host name need not resolve
    if launch.launcher == "openmpi" and not _shows_colours(os.getppid()):
        # Open MPI gives each rank a terminal, whatever its own output is. This is rich's switch against colours.
        os.environ.setdefault("TTY_COMPATIBLE", "0")
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous as meet

    timeout = timedelta(seconds=timeout_s)
    try:
        # torchrun's store outlives a restart, with what the failed attempt has written: this attempt's keys are its
        # own.
        store, _, _ = next(meet("env://", launch.rank, launch.size, timeout=timeout))
        dist.init_process_group(
            device.backend,
            store=dist.PrefixStore(f"attempt_{rendezvous()[2]}", store),
            rank=launch.rank,
            world_size=launch.size,
            timeout=timeout,
        )
    except dist.DistNetworkError as error:
        raise UserError(
            f"rank {launch.rank} on {socket.gethostname()}: the ranks meet at {address}:{port} (MASTER_ADDR, "
            f"MASTER_PORT), and {'it cannot listen' if launch.rank == 0 else 'nobody of this job answers'} there "
            f"({reason(error)}); if another program has the port, set MASTER_PORT to a free one"
        ) from None
    except dist.DistStoreError as error:
        raise UserError(
            f"rank {launch.rank} on {socket.gethostname()}: not all {launch.size} ranks came to {address}:{port} "
            f"(MASTER_ADDR, MASTER_PORT) within run.timeout_s = {timeout_s} ({reason(error)}); look at what became of "
            "the others"
        ) from None


def _check_interfaces(device: Device, local_rank: int) -> None:
    """Raises UserError if this host lacks a network interface that the user names, which the libraries do not say."""
    there = [name for _, name in socket.if_nameindex()]
    for variable, library in (
        ("GLOO_SOCKET_IFNAME", ""),
        ("NCCL_SOCKET_IFNAME", "nccl"),
        ("HCCL_SOCKET_IFNAME", "hccl"),
    ):
        value = os.environ.get(variable, "")
        if library not in device.backend or value.startswith("^"):  # all but those
            continue
        # gloo wants whole names, and every one of them; the others take what a name begins with, or after = is.
        fits = str.__eq__ if not library or value.startswith("=") else str.startswith
        missing = [
            name for name in value.removeprefix("=").split(",") if name and not any(fits(one, name) for one in there)
        ]
        if missing:
            raise found_alike(
                f"{variable}={value!r}: {socket.gethostname()} has no network interface {missing[0]!r}; it has "
                f"{', '.join(there)} (launch/*.sh set the variable from IFNAME)",
                speaker=local_rank == 0,
            )


def _shows_colours(launcher: int) -> bool:
    """Whether a launcher's standard output is a terminal, or colours are asked for."""
    if "FORCE_COLOR" in os.environ:
        return True
    with suppress(OSError):
        return os.readlink(f"/proc/{launcher}/fd/1").startswith(("/dev/pts/", "/dev/tty"))
    return False


def _rendezvous(launch: Launch) -> tuple[str, int]:
    if launch.launcher == "torchrun" or (launch.launcher == "srun" and "MASTER_ADDR" in os.environ):
        return _named_address(launch)
    if launch.launcher in MPI_LAUNCHERS:
        return _address_by_mpi(launch)
    if launch.size == 1:
        return "127.0.0.1", _free_port()
    job = os.environ.get("SLURM_JOB_ID", "")
    if not job.isdecimal():
        raise found_alike(
            f"srun: SLURM_JOB_ID={job!r} is not the number of a job; set MASTER_ADDR to the first node and MASTER_PORT",
            speaker=launch.rank == 0,
        )
    return _first_node(launch), 20000 + int(job) % 20000


def _named_address(launch: Launch) -> tuple[str, int]:
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "29500")
    if not address or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise found_alike(
            f"{launch.launcher}: MASTER_ADDR={address!r} MASTER_PORT={port!r} is no place to meet; set them to the "
            "first node and a free port of it, from 1 to 65535, on all ranks",
            speaker=launch.rank == 0,
        )
    return address, int(port)


def _first_node(launch: Launch) -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    if re.fullmatch(r"[\w.-]+", nodes):  # one
        return nodes
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise found_alike(
            f"srun: scontrol does not say which is the first of the nodes SLURM_STEP_NODELIST={nodes!r} "
            f"({reason(error)}); set MASTER_ADDR to it",
            speaker=launch.rank == 0,
        ) from None


def _address_by_mpi(launch: Launch) -> tuple[str, int]:
    from mpi4py import MPI  # initialises MPI, before torch opens its own sockets

    world = MPI.COMM_WORLD
    if (world.rank, world.size) != (launch.rank, launch.size):
        library = MPI.Get_library_version().partition(",")[0].strip()
        raise found_alike(
            f"{_spelt(launch)}: the launcher has started {launch.size} ranks, and mpi4py's MPI ({library}) knows of "
            f"{world.size}; start with the mpirun of that MPI, with srun --mpi=none, or with torchrun",
            speaker=launch.rank == 0,
        )
    hosts = set(world.allgather(socket.gethostname()))
    mine = ("127.0.0.1" if len(hosts) == 1 else socket.gethostname(), _free_port()) if launch.rank == 0 else None
    return world.bcast(mine)


def rendezvous() -> tuple[str, int, str]:
    """Address and port of the store where the ranks met, and which attempt of the launcher this is."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def address_towards(host: str, port: int) -> str:
    """This machine's address on the interface that leads to `host`. Nothing is sent."""
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as s:
        s.connect(target)
        return s.getsockname()[0]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def leave(launch: Launch) -> None:
    """End together after success."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def abort_on_exception(launch: Launch) -> None:
    """From here on an exception that nothing catches ends all ranks, as the others would wait for this one forever."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # The true stderr: torch.distributed calls this with another in its place, to be copied out after we are gone.
        sys.__stderr__.write(
            f"rank {launch.rank} on {socket.gethostname()}:\n{''.join(traceback.format_exception(kind, error, trace))}"
        )
        abort(launch, 1)

    sys.excepthook = hook


def abort(launch: Launch, code: int) -> None:
    """End the whole job at once from one rank's failure. torchrun ends its other ranks when this one has left."""
    with suppress(OSError):  # the launcher may be gone, and its pipes with it
        sys.stdout.flush()
        sys.__stderr__.flush()
    time.sleep(0.5)  # mpirun forwards what was written above only while it still runs
    if launch.launcher in MPI_LAUNCHERS:
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(code)
    os._exit(code)
