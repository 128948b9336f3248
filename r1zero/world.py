"""Any launcher's variables to rank and size, read once and restated under torchrun's names; then the process group."""

import os
import re
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Mapping

from r1zero.config import UserError
from r1zero.device import Device


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
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "mpich": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}


MPI_LAUNCHERS = ("openmpi", "mpich")


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Needs neither torch nor MPI. Raises UserError where a launcher's variables are not numbers or contradict."""
    for launcher, names in LAUNCHERS.items():
        if names[0] not in environment or names[1] not in environment:
            continue
        defaults = ("", "", environment[names[0]], environment[names[1]])
        # Slurm writes "2(x3)" for three nodes of two tasks; the first number serves, as nodes are filled alike.
        values = [re.match(r"\d*", environment.get(n, d))[0] for n, d in zip(names, defaults, strict=True)]
        if not all(values):
            raise UserError(f"{launcher}: {names[0]}={environment[names[0]]!r} {names[1]}={environment[names[1]]!r} are not numbers")
        launch = Launch(*map(int, values), launcher)
        if not 0 <= launch.rank < launch.size:
            raise UserError(f"{launcher}: rank {launch.rank} lies outside its world of {launch.size}")
        return launch
    return Launch(0, 1, 0, 1, "none")


def join(launch: Launch, device: Device, timeout_s: int) -> None:
    """Meet the other ranks: rendezvous, torchrun's names in the environment, the default process group."""
    address, port = _rendezvous(launch)
    os.environ.update(RANK=str(launch.rank), WORLD_SIZE=str(launch.size), LOCAL_RANK=str(launch.local_rank),
                      LOCAL_WORLD_SIZE=str(launch.local_size), MASTER_ADDR=address, MASTER_PORT=str(port))
    if address == "127.0.0.1":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a laptop's host name need not resolve
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous as meet

    timeout = timedelta(seconds=timeout_s)
    try:
        # torchrun's store outlives a restart, with what the failed attempt has written: this attempt's keys are its own.
        store, _, _ = next(meet("env://", launch.rank, launch.size, timeout=timeout))
        dist.init_process_group(device.backend, store=dist.PrefixStore(f"attempt_{rendezvous()[2]}", store), rank=launch.rank,
                                world_size=launch.size, timeout=timeout)
    except dist.DistNetworkError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"rank {launch.rank} on {socket.gethostname()}: the ranks meet at {address}:{port} (MASTER_ADDR, MASTER_PORT), and "
                        f"{'it cannot listen' if launch.rank == 0 else 'nobody of this job answers'} there ({first}); "
                        "if another program has the port, set MASTER_PORT to a free one") from None


def _rendezvous(launch: Launch) -> tuple[str, int]:
    if launch.launcher == "torchrun":
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if launch.launcher == "none":
        return "127.0.0.1", _free_port()
    if launch.launcher == "srun" and "MASTER_ADDR" in os.environ:
        return os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", "29500"))
    if launch.launcher == "srun":
        nodes = subprocess.run(["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]],
                               capture_output=True, text=True, check=True).stdout.split()
        return nodes[0], 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
    from mpi4py import MPI  # initialises MPI, before torch opens its own sockets

    world = MPI.COMM_WORLD
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
        sys.__stderr__.write(f"rank {launch.rank} on {socket.gethostname()}:\n{''.join(traceback.format_exception(kind, error, trace))}")
        abort(launch, 1)
    sys.excepthook = hook


def abort(launch: Launch, code: int) -> None:
    """End the whole job at once from one rank's failure. torchrun ends its other ranks when this one has left."""
    with suppress(OSError):   # the launcher may be gone, and its pipes with it
        sys.stdout.flush()
        sys.__stderr__.flush()
    time.sleep(0.5)   # mpirun forwards what was written above only while it still runs
    if launch.launcher in MPI_LAUNCHERS:
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(code)
    os._exit(code)
