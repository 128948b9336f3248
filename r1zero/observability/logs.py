"""One log a rank: what libraries warn of, what this rank is at fault for, its stacks when it crashes or is asked for
them."""

import faulthandler
import logging
import os
import signal
import socket
import time
from pathlib import Path
from typing import IO


def start(folder: Path, rank: int) -> IO[str]:
    """Python's warnings and logging go to `folder/rank_0003.log` from now on; our own warnings show on stderr, too.

    A crash in native code leaves its stack there, and SIGUSR2 asks for it at any time.
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
    to_stderr.addFilter(lambda record: record.levelno == logging.WARNING)  # errors are said once, by the watchdog
    ours.addHandler(to_stderr)
    logging.captureWarnings(True)
    faulthandler.enable(file)
    faulthandler.register(signal.SIGUSR2, file)
    return file
