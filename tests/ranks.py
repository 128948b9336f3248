"""The one way in which tests start ranks: a server that has imported everything forks the ranks of one world after
another.

Imports of torch, megatron and vLLM cost 5 to 14 s per process; here they are paid once for all tests. Every world gets
new processes, so no case sees what another one left behind in a library.

    python -m tests.ranks SOCKET      what Ranks starts
"""

import ctypes
import faulthandler
import gc
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from multiprocessing.connection import Client, Connection, Listener, Pipe
from pathlib import Path
from typing import Any

from tests import patience

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36
LEFT_S = 5.0
"""Seconds for which a process that a rank started may outlive the last rank."""
GRACE_S = 5.0
"""Seconds that the other ranks have at most to end by themselves after one rank has failed."""
STILL_S = 1.0
"""After a failure, ranks that use less than STILL_CPU_S of processor time for so long wait for the rank that failed."""
STILL_CPU_S = 0.05
ON_DEMAND = (
    "r1zero.trainer",
    "r1zero.weight_sync.transfer",
    "vllm.distributed.device_communicators.cpu_communicator",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.model_executor.layers.fused_moe.experts.cpu_moe",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.model_executor.models.qwen2",
    "vllm.plugins.lora_resolvers.hf_hub_resolver",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.attention.backends.mla.cpu_mla",
    "vllm.v1.attention.backends.mla.prefill.cpu_sdpa",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
)
"""What each rank would otherwise import itself, in half a second."""


class Ranks:
    """The tests' side: sends orders to the server, which it starts at the first order."""

    def __init__(self) -> None:
        self._server: subprocess.Popen | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="ranks")
        self._address = f"{self._folder.name}/socket"

    def run(self, function: Callable[..., Any], *args: Any, size: int, idle_s: float = patience.IDLE_S) -> list[Any]:
        """Call function(rank, *args) on the ranks of a new gloo world and return their results in order.

        The function must be importable (a function of a test module) and its results must be picklable. Raises
        AssertionError with the traceback of every rank that failed.
        """
        ended = self._order("call", (function, args, idle_s), size)
        failures = [f"rank {rank} of {size}: {text}" for rank, (ok, text) in enumerate(ended) if not ok]
        if failures:
            raise AssertionError("\n".join(failures))
        return [value for _, value in ended]

    def job(
        self,
        size: int,
        arguments: list[str],
        log: Path,
        accident: str = "none 0 none 0 0",
        *,
        launcher_kills: bool = False,
    ) -> dict[str, Any]:
        """Run train.py with an accident (tests/failure/accidents.py) as torchrun would start it, with its output in
        `log`.

        launcher_kills: end all ranks when one dies of a signal, as mpirun does. Returns `statuses` (negative: the
        signal), `ended` (time.time() when the last rank was gone), `overdue` (it had to be killed) and `left` (commands
        of processes left behind).
        """
        return self._order("job", (arguments, str(log), accident, launcher_kills), size)

    def close(self) -> None:
        if self._server:
            self._server.kill()
            self._server.wait()
        self._folder.cleanup()

    def _order(self, kind: str, content: Any, size: int) -> Any:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.ranks", self._address], cwd=ROOT
            )
            assert patience.wait(lambda: os.path.exists(self._address), [self._server.pid]), "the server does not start"
        with Client(self._address) as connection:
            connection.send_bytes(pickle.dumps((kind, content, size)))
            kind, value = pickle.loads(connection.recv_bytes())
        if kind == "failed":
            raise AssertionError(value)
        return value


def serve(address: str) -> None:
    """Import everything, then fork a supervisor for every order, so that several worlds can run at once."""
    from r1zero.distributed import device

    os.environ.update(GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1")
    device.start("cpu", 0)
    with device.quiet_imports():
        import torch
        from vllm import LLM  # noqa: F401 (loaded on demand)
        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging_if_needed
        from vllm.platforms import current_platform

        for name in ON_DEMAND:
            import_module(name)
    # Each of the following would otherwise search all modules, loggers or objects again in every rank.
    configure_logging_if_needed(LoggingConfig())
    current_platform.register_triton_kernel_overrides()
    type(current_platform).register_triton_kernel_overrides = classmethod(lambda cls: None)
    torch.set_num_threads(1)
    gc.freeze()
    gc.thaw = gc.unfreeze  # for tests that list all objects
    gc.unfreeze = lambda: None  # vLLM calls it at its end, and then searches everything for garbage
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are not waited for
    # A Listener makes the file before it listens, and the tests connect as soon as there is one at the address.
    with Listener(f"{address}.early") as listener:
        os.rename(f"{address}.early", address)
        while True:
            connection = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener._listener._socket.close()  # without the Listener's own close, which removes the file
                _supervise(connection)
            connection.close()


def _supervise(connection: Connection) -> None:
    """Carry out one order in a process of its own. Never returns."""
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # processes that ranks leave behind become children of this one
        kind, content, size = pickle.loads(connection.recv_bytes())
        answer = ("done", (_call if kind == "call" else _job)(content, size))
    except BaseException:  # whatever it is, the test must see it
        answer = ("failed", traceback.format_exc())
    with suppress(OSError):
        connection.send_bytes(pickle.dumps(answer))
    _kill_children()
    os._exit(0)


def _call(content: tuple[Callable[..., Any], tuple[Any, ...], float], size: int) -> list[tuple[bool, Any]]:
    function, args, idle_s = content
    port = _start_store()
    pids, pipes = [], []
    for rank in range(size):
        here, there = Pipe(duplex=False)
        pid = os.fork()
        if pid == 0:
            _be_rank(there, function, args, rank, size, port)
        there.close()
        pids.append(pid)
        pipes.append(here)
    ended: dict[int, tuple[bool, Any]] = {}
    failed_at = still_since = used = 0.0

    def collect() -> bool:
        nonlocal failed_at, still_since, used
        for rank, pipe in enumerate(pipes):
            if rank not in ended and pipe.poll(0.01):
                try:
                    ended[rank] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    ended[rank] = (
                        False,
                        f"it died, with status {os.waitstatus_to_exitcode(os.waitpid(pids[rank], 0)[1])}",
                    )
                failed_at = failed_at or (0.0 if ended[rank][0] else time.monotonic())
        if not failed_at or len(ended) == size:
            return len(ended) == size
        now = patience.processor_seconds(pids)
        if abs(now - used) > STILL_CPU_S:
            used, still_since = now, time.monotonic()
        return time.monotonic() > min(failed_at + GRACE_S, still_since + STILL_S)

    in_time = patience.wait(collect, pids, idle_s)
    if not in_time:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)  # writes the stacks of its threads to stderr, which pytest shows
        time.sleep(1.0)
    for pid in pids:
        if not in_time or failed_at:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    missing = "it waited for another rank" if in_time else "it made no progress"
    return [ended.get(rank, (False, missing)) for rank in range(size)]


def _start_store() -> int:
    """Start the store in which the ranks meet, and return its port.

    It has a process of its own: rank 0 may end before the others, and in this process, which forks the ranks, the
    store's thread could hold a lock at the moment of a fork, for which the rank would wait for ever.
    """
    import torch.distributed as dist

    here, there = Pipe(duplex=False)
    if os.fork() == 0:
        try:
            store = dist.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
            there.send(store.port)
            signal.pause()  # until it is killed with the other children
        finally:
            os._exit(1)
    there.close()
    port = here.recv()
    here.close()
    return port


def _be_rank(
    pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...], rank: int, size: int, port: int
) -> None:
    """Never returns."""
    import torch.distributed as dist

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), MASTER_PORT=str(port)
    )
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=600))
        dist.barrier()  # a rank with nothing to do may end at once, and others may still be connecting to it
        result = pickle.dumps((True, function(rank, *args)))
        if "megatron.core.parallel_state" in sys.modules:
            sys.modules["megatron.core.parallel_state"].destroy_model_parallel()
        dist.destroy_process_group()
    except BaseException:  # whatever a rank dies of, the test must see it
        result = pickle.dumps((False, traceback.format_exc()))
    pipe.send_bytes(result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _job(content: tuple[list[str], str, str, bool], size: int) -> dict[str, Any]:
    arguments, log, accident, launcher_kills = content
    port = free_port()
    ranks = {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            _be_job(rank, size, port, arguments, accident, log)
        ranks[pid] = rank
    statuses: dict[int, int] = {}

    def reap() -> bool:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] in ranks:
                statuses[ranks[found[0]]] = os.waitstatus_to_exitcode(found[1])
            if len(statuses) == size:
                break
        if launcher_kills and any(s < 0 for s in statuses.values()):
            kill()
        return len(statuses) == size

    def kill() -> None:
        for pid in [pid for pid, rank in ranks.items() if rank not in statuses]:
            os.kill(pid, signal.SIGKILL)

    overdue = not patience.wait(reap, ranks)
    if overdue:
        kill()
        while not reap():
            time.sleep(0.02)
    ended = time.time()
    return {"statuses": [statuses[r] for r in range(size)], "ended": ended, "overdue": overdue, "left": _left()}


def _be_job(rank: int, size: int, port: int, arguments: list[str], accident: str, log: str) -> None:
    """Become rank `rank` as torchrun would have started it. Never returns."""
    import runpy

    import numpy
    import torch

    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream, mode in ((0, os.O_RDONLY), (1, None), (2, None)):
            os.dup2(handle if mode is None else os.open(os.devnull, mode), stream)
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(size),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(size),
            MASTER_PORT=str(port),
            R1ZERO_ACCIDENT=accident,
        )
        random.seed()  # a process of its own would start with other random states
        numpy.random.seed()
        torch.seed()
        sys.argv = ["train.py", *arguments]
        runpy.run_path(str(ROOT / "tests/failure/job.py"), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def free_port() -> int:
    """A port below those that the system gives to other processes in the meantime."""
    while True:
        with socket.socket() as s:
            try:
                s.bind(("", port := random.SystemRandom().randrange(15000, 30000)))
                return port
            except OSError:
                continue


def _left() -> list[str]:
    """Commands of processes that outlived the last rank by LEFT_S; they are killed."""
    until = time.monotonic() + LEFT_S
    while time.monotonic() < until:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        time.sleep(0.05)
    commands = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in _children()]
    _kill_children()
    return commands


def _children() -> list[int]:
    return [int(pid) for children in Path("/proc/self/task").glob("*/children") for pid in children.read_text().split()]


def _kill_children() -> None:
    for pid in _children():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve(sys.argv[1])
