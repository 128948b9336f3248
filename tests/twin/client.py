"""The twin as tests see it: `Twin.run` calls a function on ranks that have an NPU."""

import os
import pickle
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from tests import patience
from tests.twin.environment import ROOT, Environment
from tests.twin.server import Case


class Twin:
    """`run(f, *args, size=n)` calls f(rank, *args) on n ranks, each a process of its own, and returns their results in
    order.

    f must be importable by its name; arguments and results must be picklable.
    """

    def __init__(self, environment: Environment, devices: int = 4) -> None:
        self._environment, self._devices = environment, devices
        self._start()

    def run(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        size: int = 1,
        world: bool = True,
        idle_s: float = patience.IDLE_S,
        **variables: str,
    ) -> list[Any]:
        """Raises AssertionError with what the ranks said, where one fails or all make no progress any more."""
        if self._server.poll() is not None:
            self._start()  # an earlier case took it down
        case = Case(f"{function.__module__}:{function.__qualname__}", arguments, size, variables, world)
        self._connection.send_bytes(pickle.dumps(case))
        results = self._answer(function.__qualname__, idle_s)
        failures = [f"rank {rank} of {size}: {result.value}" for rank, result in enumerate(results) if not result.ok]
        if failures:
            raise AssertionError("\n".join(failures))
        return [result.value for result in results]

    def close(self) -> None:
        self._connection.close()
        self._server.wait()
        self._log.close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the twin
        variables = {**os.environ, **self._environment.variables, "TWIN_DEVICES": str(self._devices)}
        self._server = subprocess.Popen(
            [str(self._environment.python), "-m", "tests.twin", str(theirs.fileno())],
            cwd=ROOT,
            env=variables,
            pass_fds=[theirs.fileno()],
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._answer("its imports")

    def _answer(self, what: str, idle_s: float = patience.IDLE_S) -> Any:
        pids = [self._server.pid]
        if not patience.wait(lambda: self._server.poll() is not None or self._connection.poll(0.05), pids, idle_s):
            os.killpg(self._server.pid, signal.SIGKILL)  # its ranks, too
            self._server.wait()
            raise AssertionError(f"the twin makes no progress with {what}\n{self._said()}")
        if self._server.poll() is not None and not self._connection.poll():
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)  # its ranks hold the connection open
        try:
            return pickle.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._server.wait()
            raise AssertionError(f"the twin died of {what}\n{self._said()}") from None

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-8000:]
