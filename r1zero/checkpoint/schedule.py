"""When a checkpoint is written and when a run ends early: by iterations, by the clock, and by signals, as all ranks
agree."""

import os
import signal
import time
from types import FrameType

from r1zero.config import Checkpoint
from r1zero.observability.metrics import MetricReducer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class SaveSchedule:
    """Decides alike on every rank.

    A signal may reach any rank, and only the clock of rank 0 counts; both are reduced together with the metrics of the
    step.
    """

    def __init__(self, cfg: Checkpoint, iterations: int, rank: int):
        self.cfg, self.iterations, self.rank = cfg, iterations, rank
        self.asked = self.stop = self.time_is_up = False
        self.saved = time.monotonic()

    def listen(self) -> None:
        """From now on a signal asks for the end of the run after this step. A second Ctrl-C ends the process at
        once."""
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the process even if the interpreter is stuck
        if (
            self.rank == 0 and not self.asked and number != signal.SIGTERM
        ):  # launchers also send SIGTERM to end a failed job
            os.write(2, b"finishing this step and saving, then the run ends; press Ctrl-C again to end it at once\n")
        self.asked = True

    def add_requests(self, reducer: MetricReducer) -> None:
        """Add this rank's requests to what the step reduces over all ranks."""
        minutes = (time.monotonic() - self.saved) / 60
        reducer.peak("stop", float(self.asked))
        reducer.peak("time_is_up", float(self.rank == 0 and 0 < self.cfg.every_minutes <= minutes))

    def decide(self, peaks: dict[str, float]) -> None:
        """Take the decision of all ranks from the reduced maxima."""
        self.stop, self.time_is_up = bool(peaks["stop"]), bool(peaks["time_is_up"])

    def due(self, iteration: int) -> bool:
        """Whether a checkpoint is to be written after this iteration."""
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

    def forgives(self, iteration: int) -> bool:
        """Whether the run continues if the checkpoint of this iteration cannot be written."""
        return self.cfg.on_failed_save == "continue" and not self.stop and iteration < self.iterations
