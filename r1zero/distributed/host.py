"""The memory and the processor time of this host, as far as its container may use them. Needs no torch."""

import ctypes
import os
from math import inf
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
UNUSED_BYTES = 256 << 20
"""Bytes of freed memory that glibc's allocator may keep before they are returned to the system."""


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


def give_back_memory(kind: str) -> None:
    """Return freed memory to the system (CPU only; other devices have their own allocators).

    glibc keeps freed blocks of up to 32 MiB for reuse. After a forward pass of a large model that can be gigabytes. The
    call costs nothing if little is kept.
    """
    libc = ctypes.CDLL(None)
    if kind != "cpu" or not hasattr(libc, "mallinfo2"):
        return
    libc.mallinfo2.restype = _MallocState
    if libc.mallinfo2().fordblks > UNUSED_BYTES:
        libc.malloc_trim(0)


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
