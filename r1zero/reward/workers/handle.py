"""What the supervisor knows about a worker."""

import math
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

from r1zero.reward.workers.protocol import Frames
from r1zero.reward.workers.worker import Task

PATIENCE_S = 0.25  # processor seconds after which a sample is set aside and another worker takes the next one


@dataclass(eq=False)
class Worker:
    """A worker process and its tasks."""

    pid: int
    sock: socket.socket
    frames: Frames = field(default_factory=Frames)
    outbox: bytearray = field(default_factory=bytearray)
    tasks: deque[Task] = field(default_factory=deque)
    """The current task, followed by those that it has received and not begun."""
    started: float = 0.0  # monotonic seconds at which the current task was sent, or the one before it was finished
    patience: float = 0.0  # processor seconds of the process at which the current task is set aside
    aside: bool = False
    robbed: bool = False
    """Whether others do the tasks that it has received after the current one, so that it must end after that one."""

    @property
    def task(self) -> Task | None:
        """The current task."""
        return self.tasks[0] if self.tasks else None

    def begin(self) -> None:
        """Start the clocks of the current task."""
        self.started, self.patience = time.monotonic(), self.processor_s() + PATIENCE_S

    def processor_s(self) -> float:
        """Returns the processor seconds that the process has used, on Linux from its clock, whose id derives from the
        pid."""
        return time.clock_gettime((~self.pid << 3) | 2) if sys.platform == "linux" else math.inf
