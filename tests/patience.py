"""How long a test may take, told by progress and not by seconds: other work on the same cores makes a test slow, not
wrong."""

import os
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

IDLE_S = 90.0
"""Processes that together use less than IDLE_CPU_S of processor time for so long are stuck."""
IDLE_CPU_S = 2.0
LIMIT_CPU_S = 1200.0
"""Processes that together use more processor time than this wait in a loop for something that never comes."""
LOOK_S = 0.25
"""So often the processor time of all their threads is read, which takes some of it."""
TICKS = os.sysconf("SC_CLK_TCK")


def wait(is_done: Callable[[], Any], pids: Iterable[int], idle_s: float = IDLE_S) -> bool:
    """Whether `is_done` becomes true before the processes `pids`, and what they have started, stop making progress."""
    roots = list(pids)
    used, since = processor_seconds(roots), time.monotonic()
    until, looked = used + LIMIT_CPU_S, since
    while not is_done():
        time.sleep(0.02)
        if time.monotonic() - looked < LOOK_S:
            continue
        now, looked = processor_seconds(roots), time.monotonic()
        if now > until:
            return bool(is_done())
        if abs(now - used) > IDLE_CPU_S:  # less than before: one of them has ended
            used, since = now, time.monotonic()
        if time.monotonic() - since > idle_s:
            return bool(is_done())
    return True


def processor_seconds(pids: Iterable[int]) -> float:
    """Of these processes and all below them that are alive."""
    total, left = 0.0, list(pids)
    while left:
        pid = left.pop()
        with suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / TICKS
            for task in Path(f"/proc/{pid}/task").iterdir():
                left += map(int, (task / "children").read_text().split())
    return total


def finish(process: subprocess.Popen, idle_s: float = IDLE_S) -> int:
    """The exit status of a process whose output goes to files; it is killed where it gets stuck."""
    if not wait(lambda: process.poll() is not None, [process.pid], idle_s):
        process.kill()
        process.wait()
        raise AssertionError(f"{process.args} made no progress for {idle_s:.0f} s")
    return process.returncode


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
    """subprocess.run with captured text, which waits for as long as there is progress."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    out, error = communicate(process)
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def communicate(process: subprocess.Popen, idle_s: float = IDLE_S) -> tuple[Any, Any]:
    """Popen.communicate, which waits for as long as there is progress."""
    used, since = 0.0, time.monotonic()
    while True:
        try:
            return process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            now = processor_seconds([process.pid])
            if abs(now - used) > IDLE_CPU_S:
                used, since = now, time.monotonic()
            if time.monotonic() - since > idle_s:
                process.kill()
                raise AssertionError(
                    f"{process.args} made no progress for {idle_s:.0f} s:\n{process.communicate()}"
                ) from None


def slowness() -> float:
    """Wall seconds that one processor second takes now; at least 1. For limits that the program itself keeps in wall
    seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    while time.process_time() - cpu < 0.2:
        pass
    measured = (time.perf_counter() - wall) / (time.process_time() - cpu)
    return 1.0 if measured < 1.3 else 2.0 * measured  # it may get worse while the test runs
