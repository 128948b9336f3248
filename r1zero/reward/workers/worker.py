"""A grading process: a fork of the supervisor with the solver loaded, limited in memory and time, and expendable."""

import ctypes
import errno
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

from r1zero.reward import own_rules
from r1zero.reward.workers.protocol import Frames, frame, receive

Task = list[Any]  # [number, kind, *arguments]
Work = dict[str, Callable[..., Any]]  # kind of task -> function

_PR_SET_PDEATHSIG = 1
_NO_MEMORY = ("cannot allocate memory", "failed to map segment", "can't start new thread")


def serve(sock: socket.socket, work: Work, deadline_s: float, memory_bytes: int) -> None:
    """Answer `[number, kind, *arguments]` with `[number, work[kind](*arguments), milliseconds]` until the socket
    closes.

    An exception is not caught: it ends this process, and the supervisor reports the sample as failed.
    """
    _bound_memory(memory_bytes)
    _bound_cpu(deadline_s)
    frames = Frames()
    while (tasks := receive(sock, frames)) is not None:
        for number, kind, *arguments in tasks:
            _bound_cpu(deadline_s)
            started = time.perf_counter()
            result = work[kind](*arguments)
            sock.sendall(frame([number, result, 1000 * (time.perf_counter() - started)]))


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies (Linux). Elsewhere the closed socket ends it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _bound_memory(extra_bytes: int) -> None:
    """Limit the address space to `extra_bytes` beyond its size after the fork, and disable core files."""
    limit, most = _address_space() + extra_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _address_space() -> int:
    """Returns the bytes of address space in use; 0 if there is no /proc."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


def _bound_cpu(deadline_s: float) -> None:
    """Limit the processor time for the next sample, in case the supervisor cannot enforce the deadline."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + deadline_s) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def failure(error: BaseException, trace: TracebackType | None, memory_mib: int) -> str:
    """Returns why a response was not graded: one line for a user's rule or lack of memory, otherwise the stack."""
    where, what = own_rules.place(trace), own_rules.said(error)
    lack = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if lack or any(words in str(error).lower() for words in _NO_MEMORY):
        return f"a response was not graded: {f'{where}: ' if where else ''}{what}; {_memory_limit(memory_mib)}\n"
    if where is not None:
        return f"a response was not graded: {where}: {what}\n"
    return "".join(traceback.format_exception(error, limit=-4))


def killed(number: int, memory_mib: int) -> str:
    """Returns the line that reports which signal ended a worker."""
    name = signal.Signals(number).name
    return f"a response was not graded: its worker was ended by {name}; {_memory_limit(memory_mib)}\n"


def _memory_limit(memory_mib: int) -> str:
    return (
        f"a grading worker may use {memory_mib} MiB beyond its initial memory: raise reward.worker_memory_mib "
        "(--memory), or import large modules at the top of the rule's file, which runs once and outside of this limit"
    )
