"""Reading text files of the user, with one sentence for each way in which that can fail."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1zero.config.errors import UserError

_HALF = re.compile("[\ud800-\udfff]")
"""Surrogates, with which Python represents the bytes of arguments and file names that are not UTF-8."""


def check_utf8(text: str, place: str) -> None:
    """Raises UserError about `place` if the text contains lone surrogates."""
    if _HALF.search(text):
        raise UserError(
            f"{place}: has bytes that are not UTF-8, which no TOML or JSON file can record; rename the file or folder"
        )


def read_text(path: str | Path, cure: str) -> str:
    """Read a UTF-8 file without its byte-order mark. Raises UserError; `cure` is its last part, the fix."""
    with readable(path, cure):
        content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: is not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from None


def read_json(path: str | Path, cure: str) -> Any:
    """Read a JSON file. Raises UserError if it cannot be read or is not JSON."""
    try:
        return json.loads(read_text(path, cure))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is corrupt or not JSON ({error}); {cure}") from None


@contextmanager
def readable(what: object, cure: str) -> Iterator[None]:
    """A context in which an OSError is raised as a UserError about `what`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what}: cannot be read ({reason(error)}); {cure}") from None


def reason(error: BaseException) -> str:
    """Returns an exception in a few words: the system's message, or the first line of its own."""
    said = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return said.splitlines()[0]
