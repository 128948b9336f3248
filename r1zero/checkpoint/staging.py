"""Creates a folder of many files with several processes that share a disk. A restart after a kill continues the work.

The folder is called `OUT.part` until it is complete. Each finished file has a note beside it, so a restart skips it,
with any number of processes. OUT itself either exists completely or not at all. If OUT is a symbolic link, its target
is created.
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
"""Name, and approximate size in bytes."""


class StagingFolder:
    """A folder under construction, as one of the processes that create it sees it."""

    def __init__(
        self, out: Path, purpose: dict[str, Any], files: list[File], rank: int, size: int, barrier: Callable[[], None]
    ):
        """purpose: identifies the task, to detect an unfinished attempt at a different one. barrier: returns when all
        processes have called it.

        Raises UserError if OUT exists or cannot be written, if OUT.part belongs to another task, or if the disk is too
        small.
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
        barrier()  # ensures that no process has finished before all have checked
        if rank == 0:
            with self.writable():
                self._begin(purpose)
        barrier()

    @contextmanager
    def writable(self) -> Iterator[None]:
        """A context that turns an OSError into a UserError. Finished files stay in OUT.part for the next start."""
        try:
            yield
        except OSError as error:
            where = Path(os.fsdecode(error.filename or self.out))
            if not (self.out.is_relative_to(where) or where.is_relative_to(self.aside)):
                raise UserError(
                    f"{where}: cannot be read ({reason(error)}); copy it again, or fix its permissions"
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
        """Write this process's files. `write(file, name)` fills a file and returns JSON to record in its note.

        progress: is called with the number of bytes that were finished.
        """
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
        """Returns name -> `segments` and `facts`, for each file."""
        return {name: json.loads((self.aside / (name + NOTE)).read_text(encoding="utf-8")) for name, _ in self.files}

    def publish(self) -> None:
        """Rename OUT.part to OUT. Called by one process, when all files exist."""
        with self.writable():
            for note in self.aside.glob("*" + NOTE):
                os.unlink(note)
            manifest.publish(self.aside, self.out)


def _check_room(out: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.01 + (1 << 20):
        raise UserError(
            f"{out}: needs {needed / 1e9:.3f} GB more, but its disk has {free / 1e9:.3f} GB free; "
            "make room, or name another disk"
        )
