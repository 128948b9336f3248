"""Folders that are there whole or not at all: files hashed while they are written, a manifest last, then one rename.

A folder is whole when its manifest is, and every file it names consists of the segments it states: one after the other,
each with its length and sha256, so that a part of a file can be checked without the rest of it.
"""

import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

NAME = "manifest.json"
PIECE = 1 << 22
FLUSH = 1 << 26
"""Bytes after which the disk is set to work while more is written."""

Segment = tuple[int, str]
"""Bytes, sha256."""


class CorruptError(Exception):
    """A folder that is not whole; the message says which file and how."""


class HashedFile:
    """A new file, hashed while it is written; `segment` ends one. It is on disk, and not just in its cache, when
    closed."""

    def __init__(self, path: Path):
        self.path = path
        self.segments: list[Segment] = []
        self._failure: OSError | None = None
        # Hashing takes twice as long as writing to the cache, and the disk longer than both: all three at once.
        self._threads = ThreadPoolExecutor(2)
        self._flushing: Future[None] | None = None
        self._unflushed = 0
        self._file = open(path, "wb")  # noqa: SIM115 (kept open)
        self._begin()

    def _begin(self) -> None:
        self._length, self._sha256 = 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        hashing = self._threads.submit(self._sha256.update, data) if size >= PIECE else None
        try:
            self._file.write(data)
        except OSError as error:
            self._failure = error
            raise
        finally:
            if hashing:
                hashing.result()
        if not hashing:
            self._sha256.update(data)
        self._length += size
        self._unflushed += size
        if self._unflushed >= FLUSH and (self._flushing is None or self._flushing.done()):
            self._unflushed = 0
            self._flushing = self._threads.submit(os.fdatasync, self._file.fileno())
        return size

    def segment(self) -> None:
        if self._length:
            self.segments.append((self._length, self._sha256.hexdigest()))
            self._begin()

    def tell(self) -> int:
        return sum(length for length, _ in self.segments) + self._length

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, kind: Any, *args: Any) -> None:
        try:
            self._threads.shutdown()
            if kind is None:
                if self._flushing:
                    self._flushing.result()  # a disk that failed then may not say so again
                self.segment()
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
            if self._failure:  # torch.save reports a full disk as an unexpected position in a file
                raise self._failure


def adopt(path: Path) -> list[Segment]:
    """The one segment of a file that a library wrote, which is then on disk, too."""
    _sync(path)
    with open(path, "rb") as file:
        return [(path.stat().st_size, sha256(file, path.stat().st_size))]


def sha256(file: IO[bytes], length: int) -> str:
    """Of the next `length` bytes, or of what there is of them."""
    found = hashlib.sha256()
    while length and (piece := file.read(min(PIECE, length))):
        found.update(piece)
        length -= len(piece)
    return found.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a small file at once: who reads it finds the old text or the new."""
    aside = path.with_name(path.name + ".new")
    with HashedFile(aside) as file:
        file.write(text.encode())
    os.replace(aside, path)
    _sync(path.parent)


def seal(folder: Path, facts: dict[str, Any], files: dict[str, list[Segment]]) -> None:
    """Write the manifest, last: `facts` and each file's segments, with a sha256 of itself."""
    body = {**facts, "files": files}
    write_text(folder / NAME, json.dumps({**body, "sha256": digest(body)}))


def read(folder: Path) -> dict[str, Any]:
    """The facts, and `files`. Raises CorruptError where the manifest is missing or was altered."""
    try:
        body = json.loads((folder / NAME).read_text(encoding="utf-8"))
        stated = body.pop("sha256")
    except FileNotFoundError:
        raise CorruptError(f"{NAME} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CorruptError(f"{NAME} cannot be read ({error})") from None
    if digest(body) != stated:
        raise CorruptError(f"{NAME} was altered")
    return body


def digest(body: dict[str, Any]) -> str:
    """sha256 of JSON values."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def check(folder: Path, name: str, segments: list[Segment]) -> None:
    """Read a file of the manifest through. Raises CorruptError."""
    path = folder / name
    if not path.is_file():
        raise CorruptError(f"{name} is missing")
    size = sum(length for length, _ in segments)
    if path.stat().st_size != size:
        raise CorruptError(f"{name} has {path.stat().st_size} bytes of {size}")
    try:
        with open(path, "rb") as file:
            for length, stated in segments:
                begin = file.tell()
                if sha256(file, length) != stated:
                    raise CorruptError(
                        f"{name} has other content than was written (sha256 of bytes {begin} to {begin + length})"
                    )
    except OSError as error:
        raise CorruptError(f"{name} cannot be read ({error})") from None


def publish(aside: Path, final: Path) -> None:
    """Give a sealed folder its name. It must not exist."""
    _sync(aside)
    os.rename(aside, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
