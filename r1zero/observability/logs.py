"""One log file per rank, with warnings of libraries, the rank's own failure, and stacks after a crash or on request."""

import faulthandler
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import IO


class _SinceStart(logging.Formatter):
    """Shows a message with the seconds since the program started, and those since the message before."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    def format(self, record: logging.LogRecord) -> str:
        now = record.relativeCreated / 1000
        since, self._last = now - self._last, now
        return f"{now:7.2f} s  {since:+7.2f} s  {record.getMessage()}"


def be_verbose() -> None:
    """Show r1zero's information messages on stderr, with times. They say what the start of a run is doing."""
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(_SinceStart())
    to_stderr.addFilter(lambda record: record.levelno == logging.INFO)
    ours = logging.getLogger("r1zero")
    ours.setLevel(logging.INFO)
    ours.addHandler(to_stderr)


def start(folder: Path, rank: int) -> IO[str]:
    """Send Python's warnings and logging to `folder/rank_0003.log`. Warnings of r1zero go to stderr as well.

    A crash in native code writes its stack to that file, and so does SIGUSR2 at any time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / f"rank_{rank:04d}.log", "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (kept open)
    file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()} on {socket.gethostname()}\n")
    to_file = logging.StreamHandler(file)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(to_file)
    ours = logging.getLogger("r1zero")
    ours.setLevel(logging.INFO)
    to_stderr = logging.StreamHandler()
    to_stderr.addFilter(lambda record: record.levelno == logging.WARNING)  # the watchdog prints errors, once
    ours.addHandler(to_stderr)
    logging.captureWarnings(True)
    faulthandler.enable(file)
    faulthandler.register(signal.SIGUSR2, file)
    return file
