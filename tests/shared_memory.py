"""What engines leave in /dev/shm."""

import os
from contextlib import suppress
from pathlib import Path

SHARED = Path("/dev/shm")


def left_behind() -> set[str]:
    """Paths of engines' shared memory that no process maps, apart from this one.

    Memory that others map is in use: another test runs at the same time, and its engine is being built.
    """
    found = {str(path) for pattern in ("*r1zero*", "*cpushm*") for path in SHARED.glob(pattern)}
    for maps in Path("/proc").glob("[0-9]*/maps") if found else ():
        if maps.parent.name != str(os.getpid()):
            with suppress(OSError):
                mapped = maps.read_text()
                found = {path for path in found if path not in mapped}
    return found
