"""R1ZERO_ACCIDENT="kind rank phase iteration delay [file]": as that rank begins that phase it raises an exception,
hangs, is stopped, is killed, or gets a signal (TERM, USR1, INT), or INT twice (INT-INT).

Killing and signals happen this many seconds after the beginning of the phase, wherever the rank may then be. The rank
`all` stands for every rank. With a file, it happens only once: not if the file exists, which it creates."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from r1zero.observability import metrics


class Accident(Exception):
    pass


def install() -> None:
    """Where the stopwatch tells its observers, after they were told."""
    kind, rank, phase, iteration, delay, *once = os.environ["R1ZERO_ACCIDENT"].split()
    if any(Path(file).exists() for file in once):
        return
    plain = metrics.Stopwatch._tell

    def tell(self: metrics.Stopwatch, name: str) -> None:
        plain(self, name)
        if (name, self.iteration) == (phase, int(iteration)):
            for file in once:
                Path(file).touch()
            happen(kind, phase, float(delay))

    if rank in ("all", os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("RANK", "0"))):
        metrics.Stopwatch._tell = tell


def happen(kind: str, phase: str, delay: float) -> None:
    if kind == "kill" or kind.isupper():
        if delay:
            threading.Timer(delay, send, [kind]).start()
        else:
            send(kind)
        return
    sys.stderr.write(f"ACCIDENT {time.time():.3f} {os.getpid()}\n")
    sys.stderr.flush()
    time.sleep(0.3)  # the launcher forwards it before the job ends
    if kind == "exception":
        raise Accident(f"in {phase}")
    if kind == "hang":
        hang()
    os.kill(os.getpid(), signal.SIGSTOP)


def send(kind: str) -> None:
    """Send this process the signals that the kind names."""
    for name in kind.upper().split("-"):
        os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        time.sleep(0.1)


def hang() -> None:
    time.sleep(1e6)
