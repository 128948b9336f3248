"""Jobs in seconds: a process that has imported everything forks the ranks of one job after another. What it forks is train.py itself.

    python -m tests.failure.zygote      a job a line on stdin, as JSON; its end a line on stdout
"""

import ctypes
import gc
import json
import os
import random
import runpy
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy
import torch

from tests import patience

ROOT = Path(__file__).parents[2]
PR_SET_CHILD_SUBREAPER = 36
LEFT_S = 5.0
"""So long after the last rank a grading process may still be about to end."""


def main() -> None:
    from r1zero.distributed import device

    device.start("cpu", 0)
    with device.quiet_imports():
        import vllm.model_executor.models.qwen2  # noqa: F401
        import vllm.v1.engine.llm_engine
        import vllm.v1.worker.cpu_worker  # noqa: F401

        import r1zero.weight_sync.transfer
        import r1zero.trainer  # noqa: F401
    gc.freeze()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)   # what a rank leaves behind becomes ours, and is counted
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(**json.loads(line))) + "\n")
        sys.stdout.flush()


def run(size: int, arguments: list[str], accident: str, log: str, launcher_kills: bool) -> dict[str, Any]:
    """Exit statuses (negative: the signal) and when the last rank was gone. launcher_kills: as mpirun does where one dies of a signal."""
    port = _free_port()
    ranks = {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            _become(rank, size, port, arguments, accident, log)
        ranks[pid] = rank
    statuses: dict[int, int] = {}

    def reap() -> bool:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] in ranks:
                statuses[ranks[found[0]]] = os.waitstatus_to_exitcode(found[1])
            if len(statuses) == size:
                break
        if launcher_kills and any(s < 0 for s in statuses.values()):
            kill()
        return len(statuses) == size

    def kill() -> None:
        for pid in [pid for pid, rank in ranks.items() if rank not in statuses]:
            os.kill(pid, signal.SIGKILL)

    overdue = not patience.wait(reap, ranks)
    if overdue:
        kill()
        while not reap():
            time.sleep(0.02)
    ended = time.time()
    return {"statuses": [statuses[r] for r in range(size)], "ended": ended, "overdue": overdue, "left": _left()}


def _free_port() -> int:
    """Below those that the system gives to whoever asks in the meantime."""
    while True:
        with socket.socket() as s:
            try:
                s.bind(("", port := random.randrange(15000, 30000)))
                return port
            except OSError:
                continue


def _left() -> list[str]:
    """Processes of a job that outlived it by LEFT_S; they are ended."""
    until = time.monotonic() + LEFT_S
    while time.monotonic() < until:
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return []
        time.sleep(0.05)
    pids = [pid for children in Path("/proc/self/task").glob("*/children") for pid in children.read_text().split()]
    commands = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids]
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    return commands


def _become(rank: int, size: int, port: int, arguments: list[str], accident: str, log: str) -> None:
    """Rank `rank`, as torchrun would have started it. Never returns."""
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream, mode in ((0, os.O_RDONLY), (1, None), (2, None)):
            os.dup2(handle if mode is None else os.open(os.devnull, mode), stream)
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), R1ZERO_ACCIDENT=accident)
        random.seed()   # as a process of its own would begin, each otherwise
        numpy.random.seed()
        torch.seed()
        sys.argv = ["train.py", *arguments]
        runpy.run_path(str(ROOT / "tests/failure/job.py"), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
