"""Messages between the trainer, the supervisor and its workers: JSON after a four-byte length.

JSON is used instead of pickle because a worker has read hostile text, and reading its answer must not execute code.
"""

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")
_CHUNK = 1 << 20


def frame(message: Any) -> bytes:
    """Returns the bytes of a message. Lone surrogates survive, because everything beyond ASCII is escaped."""
    body = json.dumps(message, ensure_ascii=True).encode("ascii")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Collects bytes and returns complete messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Add bytes. Returns the messages that they complete."""
        self._buffer += data
        messages, start = [], 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            stop = start + _LENGTH.size + length
            if len(self._buffer) < stop:
                break
            messages.append(json.loads(self._buffer[start + _LENGTH.size : stop]))
            start = stop
        del self._buffer[:start]
        return messages


def receive(sock: socket.socket, frames: Frames) -> list[Any] | None:
    """Read once. Returns the messages that are complete, perhaps none; None if the other end has closed."""
    try:
        data = sock.recv(_CHUNK)
    except BlockingIOError:
        return []
    except ConnectionError:
        return None
    return frames.feed(data) if data else None
