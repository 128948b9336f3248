"""Processes that stay, and meet in a new world for every case: imports cost seconds, cases do not."""

import multiprocessing
import os
import socket
import traceback
from multiprocessing.connection import Connection
from typing import Any, Callable


class Ranks:
    """Processes, started as cases need them. What they run must be a module's function, for it is sent by name."""

    def __init__(self) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def run(self, size: int, function: Callable, *args: Any) -> list[Any]:
        """`function(rank, *args)` as every rank of a gloo world; what each returned. A rank's failure fails the caller."""
        return self.run_jobs([size], function, *args)[0]

    def run_jobs(self, sizes: list[int], function: Callable, *args: Any) -> list[list[Any]]:
        """The same as several worlds at a time that know nothing of each other, as jobs on one host."""
        while len(self._pipes) < sum(sizes):
            self._start()
        places = [(rank, size, port) for size, port in zip(sizes, _free_ports(len(sizes)), strict=True) for rank in range(size)]
        for pipe, (rank, size, port) in zip(self._pipes, places, strict=False):
            pipe.send((rank, size, port, function, args))
        answers = [self._answer(place) for place in range(len(places))]
        failures = [text for ok, text in answers if not ok]
        assert not failures, "\n".join(failures)
        values = iter(value for _, value in answers)
        return [[next(values) for _ in range(size)] for size in sizes]

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._pipes.append(pipe)
        self._processes.append(process)

    def _answer(self, place: int) -> tuple[bool, Any]:
        try:
            return self._pipes[place].recv()
        except EOFError:
            self._processes[place].join()
            return False, f"process {place} ended with {self._processes[place].exitcode}"

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(20)
            if process.is_alive():
                process.kill()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _serve(pipe: Connection) -> None:
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from r1zero import device, world

    row = device.start("cpu")
    while True:
        try:
            rank, size, port, function, args = pipe.recv()
        except EOFError:
            return
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        launch = world.Launch(rank, size, rank, size, "torchrun")
        try:
            world.join(launch, row, 300)
            value = function(rank, *args)
            world.leave(launch)
        except BaseException:
            # The process may hold half an engine now: it ends, and cases after this one fail as well.
            pipe.send((False, f"rank {rank}: {traceback.format_exc()}"))
            os._exit(1)
        pipe.send((True, value))
