"""Decides on all ranks alike when to write a checkpoint and when to end early: by iterations, by time, and by
signals."""

import os
import signal
import time
from types import FrameType

from r1zero.config import Checkpoint
from r1zero.observability.metrics import MetricReducer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class SaveSchedule:
    """Makes the same decision on every rank.

    Any rank may receive a signal, and only the clock of rank 0 counts. Both are reduced over the ranks, together with
    the metrics of the step.
    """

    def __init__(self, cfg: Checkpoint, iterations: int, rank: int):
        self.cfg, self.iterations, self.rank = cfg, iterations, rank
        self.asked = self.stop = self.time_is_up = False
        self.saved = time.monotonic()

    def listen(self) -> None:
        """Install handlers by which a signal ends the run after the current step. A second Ctrl-C ends it at once."""
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # so that it ends the process even if the interpreter is stuck
        # No message for SIGTERM, which launchers also send to end a failed job.
        if self.rank == 0 and not self.asked and number != signal.SIGTERM:
            os.write(2, b"finishing this step and saving, then the run ends; press Ctrl-C again to end it at once\n")
        self.asked = True

    def add_requests(self, reducer: MetricReducer) -> None:
        """Add this rank's requests to the values that the step reduces over all ranks."""
        minutes = (time.monotonic() - self.saved) / 60
        reducer.peak("stop", float(self.asked))
        reducer.peak("time_is_up", float(self.rank == 0 and 0 < self.cfg.every_minutes <= minutes))

    def decide(self, peaks: dict[str, float]) -> None:
        """Decide from the maxima over all ranks."""
        self.stop, self.time_is_up = bool(peaks["stop"]), bool(peaks["time_is_up"])

    def due(self, iteration: int) -> bool:
        """Whether to write a checkpoint after this iteration."""
        every = self.cfg.every_iterations
        due = (
            self.stop
            or self.time_is_up
            or bool(every and iteration % every == 0)
            or (iteration == self.iterations and self.cfg.after_last)
        )
        if due:
            self.saved = time.monotonic()
        return due

    def is_last(self, iteration: int) -> bool:
        return iteration == self.iterations or self.stop

    def tolerates_failed_save(self, iteration: int) -> bool:
        """Whether the run continues if the checkpoint of this iteration cannot be written."""
        return self.cfg.on_failed_save == "continue" and not self.stop and iteration < self.iterations
