"""A new folder of many files, written by many processes that share a disk, each file once; a start after a kill goes
on.

While it is made the folder is called `OUT.part`. Each file that is whole has a note beside it, so the next start, with
as many processes as it likes, skips it. OUT itself is there whole or not at all. If OUT is a symbolic link, its target
is made.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from r1zero.checkpoint import manifest
from r1zero.checkpoint.manifest import HashedFile
from r1zero.config import UserError, reason

NOTE = ".done"
PURPOSE = "purpose" + NOTE
File = tuple[str, int]
"""Name and about how many bytes it will have."""


class StagingFolder:
    def __init__(
        self, out: Path, purpose: dict[str, Any], files: list[File], rank: int, size: int, barrier: Callable[[], None]
    ):
        """purpose: what is made of what, to tell another unfinished attempt. barrier: returns when all processes have
        called it.

        Raises UserError if OUT exists or cannot be written, OUT.part is of something else, or the disk is too small.
        """
        self.out, self.files, self.rank, self.size, self.barrier = (
            Path(os.path.realpath(out)),
            files,
            rank,
            size,
            barrier,
        )
        self.aside = self.out.with_name(self.out.name + ".part")
        with self.writable():
            if self.out.exists():
                raise UserError(f"{out}: exists already; name a new folder, or remove it")
        barrier()  # before any process can have finished
        if rank == 0:
            with self.writable():
                self._begin(purpose)
        barrier()

    @contextmanager
    def writable(self) -> Iterator[None]:
        """An OSError inside becomes a UserError; what is whole already stays in OUT.part for the next start."""
        try:
            yield
        except OSError as error:
            where = Path(os.fsdecode(error.filename or self.out))
            if not (self.out.is_relative_to(where) or where.is_relative_to(self.aside)):
                raise UserError(
                    f"{where}: cannot be read ({reason(error)}); copy it again, or mend its permissions"
                ) from None
            raise UserError(
                f"{self.out}: cannot be written ({reason(error)}); name a folder that can be, or make room"
            ) from None

    def _begin(self, purpose: dict[str, Any]) -> None:
        note = self.aside / PURPOSE
        if note.exists() and json.loads(note.read_text(encoding="utf-8")) != purpose:
            raise UserError(f"{self.aside}: was begun with another model or checkpoint; remove it to start anew")
        needed = sum(size for name, size in self.files if not (self.aside / (name + NOTE)).exists())
        parent = next(p for p in (self.aside, *self.aside.parents) if p.exists())
        _check_room(self.out, parent, needed)
        begun = self.aside.exists()
        self.aside.mkdir(parents=True, exist_ok=True)
        try:
            manifest.write_text(note, json.dumps(purpose))
        except OSError:
            if not begun:
                shutil.rmtree(self.aside, ignore_errors=True)
            raise

    def write(self, write: Callable[[HashedFile, str], Any], progress: Callable[[int], None]) -> None:
        """`write(file, name)` fills a file and returns JSON to remember of it. progress: bytes that are done."""
        for name, size in self.files[self.rank :: self.size]:
            note = self.aside / (name + NOTE)
            with self.writable():
                if not note.exists():
                    with HashedFile(self.aside / name) as file:
                        facts = write(file, name)
                    manifest.write_text(note, json.dumps({"segments": file.segments, "facts": facts}))
            progress(size)
        self.barrier()

    def notes(self) -> dict[str, dict[str, Any]]:
        """Name -> `segments` and `facts` of each file."""
        return {name: json.loads((self.aside / (name + NOTE)).read_text(encoding="utf-8")) for name, _ in self.files}

    def publish(self) -> None:
        """By one process, when all files of OUT are there."""
        with self.writable():
            for note in self.aside.glob("*" + NOTE):
                os.unlink(note)
            manifest.publish(self.aside, self.out)


def _check_room(out: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.01 + (1 << 20):
        raise UserError(
            f"{out}: needs {needed / 1e9:.3f} GB more, and its disk has {free / 1e9:.3f} GB free; "
            "make room, or name another disk"
        )
