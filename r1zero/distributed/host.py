"""What this host has: memory, as far as its container may use it. No torch."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def total_memory() -> int:
    """Bytes of the host, or of the container where that has less."""
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(host, _cgroup_bytes("memory.max", host))


def available_memory() -> int:
    """Bytes that can be taken without swapping: the kernel's estimate, or what the container's limit leaves where that
    is less."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return total_memory()
    lines = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").rstrip("\n").split("\n"))
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit = _cgroup_bytes("memory.max", available)
    return max(0, min(available, limit - _cgroup_bytes("memory.current", 0) if limit < available else available))


def _cgroup_bytes(name: str, otherwise: int) -> int:
    """A figure of the control group (version 2); `otherwise` where there is none, or "max"."""
    try:
        return int((CGROUP / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return otherwise
