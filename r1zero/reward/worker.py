"""One grading process: forked from the supervisor with the solver already loaded, bounded, and expendable."""

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from r1zero.reward.protocol import Frames, frame, receive

Task = list[Any]  # [number, kind, text, text]
Work = dict[str, Callable[[str, str], Any]]  # what to do for each kind of task

_PR_SET_PDEATHSIG = 1


def serve(sock: socket.socket, work: Work, deadline_s: float, memory_bytes: int) -> None:
    """Answers `[number, kind, a, b]` with `[number, work[kind](a, b), milliseconds]` until the supervisor is gone.

    An exception is not caught: it ends this process, and the supervisor reports the sample as failed.
    """
    _bound_memory(memory_bytes)
    _bound_cpu(deadline_s)
    frames = Frames()
    while (tasks := receive(sock, frames)) is not None:
        for number, kind, a, b in tasks:
            _bound_cpu(deadline_s)
            started = time.perf_counter()
            result = work[kind](a, b)
            sock.sendall(frame([number, result, 1000 * (time.perf_counter() - started)]))


def die_with_parent(parent: int) -> None:
    """Linux: the kernel kills this process when `parent`'s forking thread ends. Elsewhere the closed socket ends it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _bound_memory(extra_bytes: int) -> None:
    """At most `extra_bytes` of address space beyond what the fork brought, and no core file."""
    limit = _address_space() + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _address_space() -> int:
    """Bytes of address space in use; 0 where there is no /proc."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _bound_cpu(deadline_s: float) -> None:
    """Processor time for one more sample, should the supervisor itself be kept from enforcing the deadline."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + deadline_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))
