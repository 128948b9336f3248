"""What engines leave in /dev/shm."""

import os
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")


def left_behind() -> set[str]:
    """Paths of engines' shared memory that only the ranks of this process's world map, or no process.

    Memory that others map is in use: another test runs at the same time, and its engine is being built. The ranks of a
    world have the same parent (tests/ranks.py).
    """
    found = {str(path) for pattern in ("*r1zero*", "*cpushm*") for path in SHARED.glob(pattern)}
    for process in Path("/proc").glob("[0-9]*") if found else ():
        with suppress(OSError, IndexError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent != os.getppid():
                mapped = (process / "maps").read_text()
                found = {path for path in found if path not in mapped}
    return found
