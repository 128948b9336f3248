"""Lines for the person who watches: a terminal that cannot show them, or is gone, never stops a run."""

import logging
import os
import sys
from io import StringIO

from rich.console import Console
from rich.text import Text

log = logging.getLogger(__name__)

WIDTH = 150
"""Columns where no terminal says how many it has."""


class Terminal:
    """Standard output. What cannot be written goes to the rank's log, once with the reason."""

    def __init__(self) -> None:
        own = Console()  # knows a terminal, NO_COLOR, and what world.join says of a launcher's pseudo-terminal
        self._has_colours = bool(sys.stdout) and own.is_terminal and not own.no_color
        self.ascii_only = not _encoding().lower().startswith("utf")
        """Whether the terminal's encoding has no characters for drawing."""
        self._is_broken = False

    def print(self, text: str | Text) -> None:
        if self._is_broken:
            log.info("%s", text)
            return
        try:
            sys.stdout.write(self._rendered(text).encode(_encoding(), "replace").decode(_encoding()))
            sys.stdout.flush()
        except (
            OSError,
            ValueError,
            AttributeError,
        ) as error:  # a reader that ended, a full disk, a closed file, no file at all
            self._is_broken = True
            log.error("standard output cannot be written any more (%s); the run goes on, and its lines are here", error)
            log.info("%s", text)
            _discard_stdout()

    def _rendered(self, text: str | Text) -> str:
        """Not by rich's own console on standard output: that one ends the process where a pipe is broken."""
        buffer = StringIO()
        console = Console(
            file=buffer,
            highlight=False,
            width=None if self._has_colours else WIDTH,
            force_terminal=self._has_colours,
            no_color=not self._has_colours,
        )
        console.print(text, soft_wrap=True, markup=False)
        return buffer.getvalue()


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "ascii"


def _discard_stdout() -> None:
    """What is still in the buffer, and what others print, must not fail again at the end of the process."""
    if sys.stdout is None:  # its number may be another file's by now
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)
