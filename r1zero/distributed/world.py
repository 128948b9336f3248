"""Joins the process group, under torchrun's names for rank and world size whatever the launcher was, and leaves it."""

import os
import re
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from types import TracebackType

from r1zero.config import UserError, reason, shared_error
from r1zero.distributed.device import Device
from r1zero.distributed.launcher import MPI_LAUNCHERS, Launch, spelt


def join(launch: Launch, device: Device, timeout_s: int) -> None:
    """Join the other ranks: sets torchrun's names in the environment and creates the default process group.

    Raises UserError if the launcher's variables do not say where to meet, or if not all ranks arrive.
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
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host name of a laptop may not resolve
    if launch.launcher == "openmpi" and not _shows_colours(os.getppid()):
        # Open MPI gives each rank a terminal, even if its own output is not one. This disables rich's colours.
        os.environ.setdefault("TTY_COMPATIBLE", "0")
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous as meet

    timeout = timedelta(seconds=timeout_s)
    try:
        # torchrun's store survives a restart, with the failed attempt's keys. A prefix separates this attempt's keys.
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
            f"MASTER_PORT), but {'it cannot listen' if launch.rank == 0 else 'nobody of this job answers'} there "
            f"({reason(error)}); if another program uses the port, set MASTER_PORT to a free one"
        ) from None
    except dist.DistStoreError as error:
        raise UserError(
            f"rank {launch.rank} on {socket.gethostname()}: not all {launch.size} ranks came to {address}:{port} "
            f"(MASTER_ADDR, MASTER_PORT) within run.timeout_s = {timeout_s} ({reason(error)}); check what happened to "
            "the others"
        ) from None


def _check_interfaces(device: Device, local_rank: int) -> None:
    """Raises UserError if a variable names a network interface that this host lacks. The libraries do not report it."""
    there = [name for _, name in socket.if_nameindex()]
    for variable, library in (
        ("GLOO_SOCKET_IFNAME", ""),
        ("NCCL_SOCKET_IFNAME", "nccl"),
        ("HCCL_SOCKET_IFNAME", "hccl"),
    ):
        value = os.environ.get(variable, "")
        if library not in device.backend or value.startswith("^"):  # "^" excludes interfaces
            continue
        # gloo needs full names, all of which must exist. The others match the beginning of a name unless "=" is given.
        fits = str.__eq__ if not library or value.startswith("=") else str.startswith
        missing = [
            name for name in value.removeprefix("=").split(",") if name and not any(fits(one, name) for one in there)
        ]
        if missing:
            raise shared_error(
                f"{variable}={value!r}: {socket.gethostname()} has no network interface {missing[0]!r}; it has "
                f"{', '.join(there)} (launch/*.sh set the variable from IFNAME)",
                speaker=local_rank == 0,
            )


def _shows_colours(launcher: int) -> bool:
    """Whether the launcher's standard output is a terminal, or colours are requested."""
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
        raise shared_error(
            f"srun: SLURM_JOB_ID={job!r} is not the number of a job; set MASTER_ADDR to the first node and MASTER_PORT",
            speaker=launch.rank == 0,
        )
    return _first_node(launch), 20000 + int(job) % 20000


def _named_address(launch: Launch) -> tuple[str, int]:
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "29500")
    if not address or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise shared_error(
            f"{launch.launcher}: MASTER_ADDR={address!r} MASTER_PORT={port!r} is not a valid address; set them to the "
            "first node and a free port of it, from 1 to 65535, on all ranks",
            speaker=launch.rank == 0,
        )
    return address, int(port)


def _first_node(launch: Launch) -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST", "")
    if re.fullmatch(r"[\w.-]+", nodes):  # a single node
        return nodes
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise shared_error(
            f"srun: scontrol does not say which is the first of the nodes SLURM_STEP_NODELIST={nodes!r} "
            f"({reason(error)}); set MASTER_ADDR to it",
            speaker=launch.rank == 0,
        ) from None


def _address_by_mpi(launch: Launch) -> tuple[str, int]:
    from mpi4py import MPI  # initialises MPI, before torch opens its own sockets

    world = MPI.COMM_WORLD
    if (world.rank, world.size) != (launch.rank, launch.size):
        library = MPI.Get_library_version().partition(",")[0].strip()
        raise shared_error(
            f"{spelt(launch)}: the launcher has started {launch.size} ranks, but mpi4py's MPI ({library}) sees "
            f"{world.size}; start with the mpirun of that MPI, with srun --mpi=none, or with torchrun",
            speaker=launch.rank == 0,
        )
    hosts = set(world.allgather(socket.gethostname()))
    mine = ("127.0.0.1" if len(hosts) == 1 else socket.gethostname(), _free_port()) if launch.rank == 0 else None
    return world.bcast(mine)


def rendezvous() -> tuple[str, int, str]:
    """Returns address and port of the store where the ranks met, and the number of the launcher's attempt."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def address_towards(host: str, port: int) -> str:
    """Returns this machine's address on the interface that leads to `host`, without sending anything."""
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as s:
        s.connect(target)
        return s.getsockname()[0]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


def leave(launch: Launch) -> None:
    """Leave the process group after success. Collective over the world."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def abort_on_exception(launch: Launch) -> None:
    """Make an uncaught exception end all ranks, because the others would otherwise wait for this one forever."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # Write to the real stderr: torch.distributed replaces sys.stderr here and copies its content too late.
        write_stderr(
            f"rank {launch.rank} on {socket.gethostname()}:\n{''.join(traceback.format_exception(kind, error, trace))}"
        )
        abort(launch, 1)

    sys.excepthook = hook


def write_stderr(text: str) -> None:
    """Write to the real stderr, unless it was closed before the process started, or the launcher has gone meanwhile."""
    if sys.__stderr__:
        with suppress(OSError):
            sys.__stderr__.write(text)
            sys.__stderr__.flush()


def abort(launch: Launch, code: int) -> None:
    """End the whole job at once after a failure of this rank. torchrun ends its other ranks once it has exited."""
    with suppress(OSError):  # the launcher and its pipes may be gone
        sys.stdout.flush()
        if sys.__stderr__:
            sys.__stderr__.flush()
    time.sleep(0.5)  # mpirun forwards the output above only while this process runs
    if launch.launcher in MPI_LAUNCHERS:
        from mpi4py import MPI

        MPI.COMM_WORLD.Abort(code)
    os._exit(code)
