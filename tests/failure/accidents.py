"""R1ZERO_ACCIDENT="kind rank phase iteration": as that rank begins that phase it raises an exception, hangs, is stopped or is killed."""

import os
import signal
import sys
import time

from r1zero import metrics

SIGNALS = {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}


class Accident(Exception):
    pass


def install() -> None:
    """Where the stopwatch tells its observers, after they were told."""
    kind, rank, phase, iteration = os.environ["R1ZERO_ACCIDENT"].split()
    plain = metrics.Stopwatch._tell

    def tell(self: metrics.Stopwatch, name: str) -> None:
        plain(self, name)
        if (name, self.iteration) == (phase, int(iteration)):
            happen(kind, phase)
    if rank == os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK", "0")):
        metrics.Stopwatch._tell = tell


def happen(kind: str, phase: str) -> None:
    sys.stderr.write(f"ACCIDENT {time.time():.3f} {os.getpid()}\n")
    sys.stderr.flush()
    time.sleep(0.2)   # the launcher forwards it before the job ends
    if kind == "exception":
        raise Accident(f"in {phase}")
    if kind == "hang":
        hang()
    os.kill(os.getpid(), SIGNALS[kind])


def hang() -> None:
    time.sleep(1e6)
