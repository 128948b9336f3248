"""When a run is saved, and when it ends early: by iterations, by the clock, and by a signal, as all ranks agree."""

import os
import signal
import time
from types import FrameType

from r1zero.config import Checkpoint
from r1zero.observability.metrics import Tally

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Saving:
    """A signal, to whichever rank, and the first rank's clock are reduced with the step's own figures, so that every rank decides alike."""

    def __init__(self, cfg: Checkpoint, iterations: int, rank: int):
        self.cfg, self.iterations, self.rank = cfg, iterations, rank
        self.asked = self.stop = self.time_is_up = False
        self.saved = time.monotonic()

    def listen(self) -> None:
        """From now on a signal lets the step be finished and saved. A second Ctrl-C ends the process at once."""
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)   # which needs no interpreter to end what hangs
        if self.rank == 0 and not self.asked and number != signal.SIGTERM:   # which also comes from a launcher that ends a failed job
            os.write(2, b"the step is finished and saved, then the run ends; Ctrl-C again ends it at once\n")
        self.asked = True

    def tally(self, tally: Tally) -> None:
        minutes = (time.monotonic() - self.saved) / 60
        tally.peak("stop", float(self.asked))
        tally.peak("time_is_up", float(self.rank == 0 and 0 < self.cfg.every_minutes <= minutes))

    def agree(self, peaks: dict[str, float]) -> None:
        self.stop, self.time_is_up = bool(peaks["stop"]), bool(peaks["time_is_up"])

    def due(self, iteration: int) -> bool:
        every = self.cfg.every_iterations
        found = (self.stop or self.time_is_up or bool(every and iteration % every == 0)
                 or iteration == self.iterations and self.cfg.after_last)
        if found:
            self.saved = time.monotonic()
        return found

    def is_last(self, iteration: int) -> bool:
        return iteration == self.iterations or self.stop

    def forgives(self, iteration: int) -> bool:
        """Whether the run goes on where that iteration could not be saved."""
        return self.cfg.on_failed_save == "continue" and not self.stop and iteration < self.iterations
