"""A process of the twin's environment that has imported everything, and forks the ranks of one case after another.

    python -m tests.twin DESCRIPTOR      cases come and results go over the socket of that number

Importing torch, megatron and vLLM takes 20 s of processor time; forked from here, a case costs what it does. Each is in
processes of its own all the same: what it leaves behind goes with them."""

import faulthandler
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

OTHERS_S = 5.0
"""So long the other ranks may go on after one has failed: they may be about to say why, or wait for it in a
collective."""


@dataclass(frozen=True)
class Case:
    function: str
    """module:name; called as function(rank, *arguments)."""
    arguments: tuple[Any, ...] = ()
    size: int = 1
    variables: dict[str, str] = field(default_factory=dict)
    world: bool = True
    """Join the ranks in a process group first."""


@dataclass(frozen=True)
class Result:
    ok: bool
    value: Any
    """Of the function, or a traceback with what the rank printed."""


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    from tests.twin import project

    project.import_everything()
    connection.send_bytes(pickle.dumps("ready"))
    while True:
        try:
            case = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(
            pickle.dumps(run(case))
        )  # a Connection's own pickles share tensors' memory, which does not outlive a rank


def run(case: Case) -> list[Result]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        ranks = {}
        for rank in range(case.size):
            pid = os.fork()
            if pid == 0:
                _be(rank, case, port, Path(folder))
            ranks[pid] = rank
        statuses = _wait(set(ranks))
        return [_result(Path(folder), ranks[pid], statuses[pid]) for pid in sorted(ranks, key=ranks.get)]


def _wait(left: set[int]) -> dict[int, int]:
    """Process -> exit status, negative for a signal. Where one fails the others are ended after a while."""
    statuses: dict[int, int] = {}
    failed_at, parent = None, os.getppid()
    while left - set(statuses):
        if os.getppid() != parent:  # the tests were stopped
            os.killpg(0, signal.SIGKILL)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in left:
            statuses[pid] = os.waitstatus_to_exitcode(status)
            if statuses[pid] and failed_at is None:
                failed_at = time.monotonic()
        if pid == 0:
            time.sleep(0.01)
        if failed_at and time.monotonic() - failed_at > OTHERS_S:
            for other in left - set(statuses):
                with suppress(ProcessLookupError):
                    os.kill(other, signal.SIGKILL)
    return statuses


def _result(folder: Path, rank: int, status: int) -> Result:
    if status == 0:
        return pickle.loads((folder / f"{rank}.result").read_bytes())
    log = (folder / f"{rank}.log").read_text(errors="replace")
    return Result(False, f"exit status {status}\n{log[-8000:]}")


def _be(rank: int, case: Case, port: int, folder: Path) -> None:
    """Become a rank of the case; never returns."""
    log = os.open(folder / f"{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(case.size),
        LOCAL_WORLD_SIZE=str(case.size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **case.variables,
    )
    status = 1
    try:
        value = _call(rank, case, port)
        (folder / f"{rank}.result").write_bytes(pickle.dumps(Result(True, value)))
        status = 0
    except BaseException:  # whatever a rank dies of is the test's to show
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _call(rank: int, case: Case, port: int) -> Any:
    import torch
    import torch.distributed as dist

    from tests.twin import project

    torch.npu.set_device(rank)
    if case.world:
        dist.init_process_group(
            project.DEVICE.backend,
            init_method=f"tcp://127.0.0.1:{port}",
            rank=rank,
            world_size=case.size,
            timeout=timedelta(seconds=600),
        )
    module, name = case.function.split(":")
    value = getattr(import_module(module), name)(rank, *case.arguments)
    if case.world:
        dist.barrier()  # rank 0 keeps the store in which groups meet
    return value
