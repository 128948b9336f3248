"""The memory and the processor time of this host, as far as its container may use them. Needs no torch."""

import ctypes
import os
from math import inf
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt (malloc.h)."""
LARGE_BYTES = 32 << 20
"""Blocks of this size are returned to the system as soon as they are freed. It is the largest value that glibc accepts,
and the one that it arrives at by itself."""


def total_memory() -> int:
    """Returns the bytes of the host, or of the container if it has less."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(host, _cgroup_bytes("memory.max", host))


def available_memory() -> int:
    """Returns the bytes that can be allocated without swapping.

    This is the kernel's estimate, or what remains of the container's limit if that is less.
    """
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return total_memory()
    lines = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").rstrip("\n").split("\n"))
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = _cgroup_bytes("memory.max", available)
    return max(0, min(available, limit - _cgroup_bytes("memory.current", 0) if limit < available else available))


def cpu_quota() -> float:
    """Returns how many cores' worth of time the container may use; infinite without a limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text(encoding="ascii").split()
        return inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return inf


def keep_memory() -> None:
    """Let glibc's allocator keep freed blocks of less than LARGE_BYTES, for the rest of the process.

    By default it returns them as soon as there are many. A step needs as much memory as the one before it, and the
    kernel fills each page with zeros before it gives it out, which can take longer than the computation that uses it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)  # setting the other one would otherwise leave it at 128 KiB
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def unused_memory() -> int:
    """Returns the freed bytes that glibc's allocator keeps; 0 with another C library."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _MallocState
    return libc.mallinfo2().fordblks


def give_back_memory(kind: str) -> None:
    """Return freed memory to the system if that has less left (CPU only; other devices have their own allocators)."""
    if kind == "cpu" and available_memory() < unused_memory():
        ctypes.CDLL(None).malloc_trim(0)


def _cgroup_bytes(name: str, otherwise: int) -> int:
    """Returns a value of the control group (version 2), or `otherwise` if it does not exist or is "max"."""
    try:
        return int((CGROUP / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return otherwise


class _MallocState(ctypes.Structure):
    """glibc's struct mallinfo2 (malloc.h)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]
