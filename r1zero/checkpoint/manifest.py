"""Folders that exist either completely or not at all: files are hashed as they are written, and a manifest comes last.

The folder is then renamed. It is complete if its manifest is, and if every file that the manifest names consists of the
stated segments: consecutive parts with length and sha256, so that a part of a file can be verified without the rest.
"""

import hashlib
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

NAME = "manifest.json"
PIECE = 1 << 22
FLUSH = 1 << 26
"""Number of bytes after which a flush to disk is started while writing continues."""

Segment = tuple[int, str]
"""Length in bytes, sha256."""


class CorruptError(Exception):
    """A folder is not complete. The message names the file and the problem."""


class HashedFile:
    """A new file that is hashed as it is written. `segment` ends a segment. Closing waits until the data is on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.segments: list[Segment] = []
        self._failure: OSError | None = None
        # Hashing takes twice as long as writing to the cache, and the disk longer than both, so all three overlap.
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

    @property
    def binary(self) -> IO[bytes]:
        """This file, as the type that torch.save declares. torch.save calls only methods that this class has."""
        return cast(IO[bytes], self)

    def segment(self) -> None:
        """End the current segment, unless it is empty."""
        if self._length:
            self.segments.append((self._length, self._sha256.hexdigest()))
            self._begin()

    def tell(self) -> int:
        """Returns the number of bytes written so far."""
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
                    self._flushing.result()  # the disk may not report the same error a second time
                self.segment()
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
            if self._failure:  # torch.save hides a full disk behind an error about the position in the file
                raise self._failure


def adopt(path: Path) -> list[Segment]:
    """Returns the single segment of a file that a library wrote, after flushing it to disk."""
    _sync(path)
    with open(path, "rb") as file:
        return [(path.stat().st_size, sha256(file, path.stat().st_size))]


def sha256(file: IO[bytes], length: int) -> str:
    """Returns the hash of the next `length` bytes, or of fewer at the end of the file."""
    found = hashlib.sha256()
    while length and (piece := file.read(min(PIECE, length))):
        found.update(piece)
        length -= len(piece)
    return found.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a small file atomically: a reader finds the old text or the new one."""
    aside = path.with_name(path.name + ".new")
    with HashedFile(aside) as file:
        file.write(text.encode())
    os.replace(aside, path)
    _sync(path.parent)


def seal(folder: Path, facts: dict[str, Any], files: dict[str, list[Segment]]) -> None:
    """Write the manifest, the last file: `facts` and each file's segments, and a sha256 of them."""
    body = {**facts, "files": files}
    write_text(folder / NAME, json.dumps({**body, "sha256": digest(body)}))


def read(folder: Path) -> dict[str, Any]:
    """Returns the facts and `files`. Raises CorruptError if the manifest is missing or was altered."""
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
    """Returns the sha256 of JSON values."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def check(folder: Path, name: str, segments: list[Segment]) -> None:
    """Read and verify a file of the manifest. Raises CorruptError."""
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
    """Rename a sealed folder to its final name, which must not exist."""
    _sync(aside)
    os.rename(aside, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
