"""Output for the person who watches the run. A terminal that fails never stops the run."""

import logging
import os
import sys
from io import StringIO

from rich.console import Console
from rich.text import Text

log = logging.getLogger(__name__)

WIDTH = 150
"""Number of columns if no terminal states it."""


class Terminal:
    """Standard output. If writing fails, the reason and all further lines go to the rank's log."""

    def __init__(self) -> None:
        own = Console()  # detects terminals, NO_COLOR, and the setting of world.join for pseudo-terminals
        self._has_colours = bool(sys.stdout) and own.is_terminal and not own.no_color
        self.ascii_only = not _encoding().lower().startswith("utf")
        """Whether the encoding lacks the characters for drawing."""
        self._is_broken = False

    def print(self, text: str | Text) -> None:
        """Write a line. Never raises an error of the terminal."""
        if self._is_broken:
            log.info("%s", text)
            return
        try:
            sys.stdout.write(self._rendered(text).encode(_encoding(), "replace").decode(_encoding()))
            sys.stdout.flush()
        # A reader that ended, a full disk, a closed file, or no file at all.
        except (OSError, ValueError, AttributeError) as error:
            self._is_broken = True
            log.error("standard output cannot be written any more (%s); its further lines are in this log", error)
            log.info("%s", text)
            _discard_stdout()

    def _rendered(self, text: str | Text) -> str:
        """Render a text. rich's own console on standard output would end the process at a broken pipe."""
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
    """Redirect standard output, so that buffered output does not fail again at the end of the process."""
    if sys.stdout is None:  # its file descriptor may belong to another file by now
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)
