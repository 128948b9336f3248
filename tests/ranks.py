"""A few processes that live as long as a test module and run functions as the ranks of a gloo world.

Imports of torch, megatron and vLLM cost 5 to 14 s a process; here they are paid once. Every case gets a fresh process group of
the size it asks for.
"""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from tests import patience


class Ranks:
    """`run(f, *args, size=n)` calls f(rank, *args) on n ranks and returns their n results in order.

    f must be importable (a function of a test module); its results must be picklable: plain values or CPU tensors.
    """

    def __init__(self) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def run(self, function: Callable[..., Any], *args: Any, size: int) -> list[Any]:
        while len(self._pipes) < size:
            self._start()
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        for rank in range(size):
            self._pipes[rank].send((function, args, rank, size, port))
        results, failures = [], []
        for rank in range(size):
            if not patience.wait(lambda pipe=self._pipes[rank]: pipe.poll(0.05), [process.pid for process in self._processes]):
                self.close()
                raise AssertionError(f"rank {rank} of {size} does not answer, and no rank makes progress\n" + "\n".join(failures))
            ok, value = self._pipes[rank].recv()
            results.append(value)
            if not ok:
                failures.append(f"rank {rank} of {size}:\n{value}")
        if failures:
            self.close()   # libraries keep groups of the failed case in their globals: the next case starts in new processes
            raise AssertionError("\n".join(failures))
        return results

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._pipes, self._processes = [], []

    def _start(self) -> None:
        here, there = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        self._pipes.append(here)
        self._processes.append(process)


def _serve(pipe: Connection) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            function, args, rank, size, port = pipe.recv()
        except EOFError:
            return
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size), MASTER_PORT=str(port))
        try:
            dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size,
                                    timeout=timedelta(seconds=600))
            result = (True, function(rank, *args))
        except BaseException:   # whatever a rank dies of is the test's to show
            result = (False, traceback.format_exc())
        finally:
            if "megatron.core.parallel_state" in sys.modules:
                sys.modules["megatron.core.parallel_state"].destroy_model_parallel()
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send(result)
