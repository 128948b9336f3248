"""Shows what rank 0 is doing during a long phase: a status line on a terminal, otherwise a line every half minute."""

import time
from collections.abc import Callable, Sequence
from threading import Event, Lock, Thread

from rich.console import Console
from rich.status import Status

from r1zero.batch import Response
from r1zero.observability.console import Terminal

QUIET = ("", "start", "adv", "record", "dispatch", "parity")
"""Phases that are not shown: they are short, or lie between iterations."""
ON_TERMINAL_S, IN_PIPE_S = 1.0, 30.0
"""Seconds between two updates on a terminal, and between two lines in a pipe or file."""


class Progress:
    """Observes the phases of the trainer's stopwatch, and the responses that this rank's engine has finished.

    A separate thread prints them, so that a phase in which no response finishes is shown too. The thread only reads
    counters and does not affect the run.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.name, self.iteration, self.began = "", 0, clock()
        self.total = self.finished = self.tokens = self.longest = 0
        self._console = Console(stderr=True)
        self._terminal = Terminal()
        self._status: Status | None = None
        self._drawing = Lock()
        """Held while a status line appears or disappears, so that none appears after its phase has ended."""
        self._over = Event()
        self._thread = Thread(target=self._show, name="progress", daemon=True)

    def start(self) -> None:
        """Start the thread that prints the progress."""
        self._thread.start()

    def close(self) -> None:
        """Remove the status line, and stop printing."""
        self._over.set()
        self.phase("", 0)

    def phase(self, name: str, iteration: int) -> None:
        """Record that a phase has begun, or ended if `name` is empty, and remove the status line of the one before."""
        with self._drawing:
            if self._status:
                self._status.stop()
                self._status = None
            self.name, self.iteration, self.began = name, iteration, self.clock()
            self.total = self.finished = self.tokens = self.longest = 0

    def begin(self, name: str, responses: int) -> None:
        """Record that the phase goes on with a part of this name, for which the engine gets this many requests."""
        self.phase(name, self.iteration)
        self.expect(responses)

    def expect(self, responses: int) -> None:
        """Record that this many more responses are requested from the engine in this phase."""
        self.total += responses

    def see(self, responses: Sequence[Response]) -> None:
        """Record that responses are finished."""
        lengths = [len(response.token_ids) for response in responses]
        self.finished += len(lengths)
        self.tokens += sum(lengths)
        self.longest = max(self.longest, *lengths)

    def line(self) -> str:
        """Returns the line to show now, or an empty text if there is none. Only this rank's engine is counted."""
        name, seconds = self.name, self.clock() - self.began
        if name in QUIET:
            return ""
        where = f"iteration {self.iteration}: " if self.iteration else ""
        text = f"{where}{name}, {seconds:.0f} s"
        if not self.total:
            return text
        text += f", {self.finished} of {self.total} responses of this engine finished"
        if not self.finished or seconds <= 0:
            return text
        left = seconds / self.finished * (self.total - self.finished)
        text += f" ({self.tokens / seconds:,.0f} tokens/s, the longest has {self.longest} tokens)"
        return f"{text}, about {left:.0f} s left" if left else text

    def _show(self) -> None:
        on_terminal = self._console.is_terminal
        while not self._over.wait(ON_TERMINAL_S if on_terminal else IN_PIPE_S):
            with self._drawing:
                text = self.line() if self.clock() - self.began > ON_TERMINAL_S else ""
                if text:
                    self._draw(text, on_terminal)

    def _draw(self, text: str, on_terminal: bool) -> None:
        if not on_terminal:
            self._terminal.print(text)
        elif self._status:
            self._status.update(text)
        else:
            self._status = self._console.status(text)
            self._status.start()
