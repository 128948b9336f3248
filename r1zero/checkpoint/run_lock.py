"""One job at a time writes a run's folder: a lock that names its holder, and that a holder which has died does not
keep.

The lock is the kernel's (flock) on a file in the folder, so that it ends with its process, however that ends. File
systems that do not share such locks between hosts are covered by the file's time, which the holder renews while it
lives.
"""

import fcntl
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from r1zero.config import UserError

NAME = "lock.json"
RENEW_S = 15.0
STALE_S = 120.0
"""A holder on another host that has not renewed its lock for so long is gone."""


class RunLock:
    """Held from construction to `release`, or to the end of the process."""

    def __init__(self, folder: Path):
        """Raises UserError where another live job has the folder, naming its host and process, or where it cannot be
        written."""
        self.path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 (kept open)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); change run.dir, or its permissions"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal(self._holder()) from None
        except OSError:  # a file system without such locks: its time alone tells
            pass
        holder = self._holder()
        if holder.get("host", self._host) != self._host and self._age_s() < STALE_S:
            raise self._refusal(holder)
        self._renewed = time.monotonic()
        self._write(
            {
                "host": self._host,
                "process": os.getpid(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "command": sys.argv,
            }
        )

    def renew(self) -> None:
        """Called often, from any thread: shows other hosts that this process lives."""
        if time.monotonic() - self._renewed > RENEW_S:
            self._renewed = time.monotonic()
            with suppress(OSError):  # a full disk is not the lock's business
                os.utime(self._file.fileno())

    def release(self) -> None:
        self._write({})
        self._file.close()

    @property
    def _host(self) -> str:
        return socket.gethostname()

    def _holder(self) -> dict[str, object]:
        """What the last holder wrote; nothing where that is unreadable, as after a full disk."""
        self._file.seek(0)
        try:
            found = json.loads(self._file.read() or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _age_s(self) -> float:
        """Seconds since the file was written, by the file system's own clock."""
        probe = self.path.with_name(f".{NAME}.{os.getpid()}")
        try:
            probe.touch()
            return probe.stat().st_mtime - os.fstat(self._file.fileno()).st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _refusal(self, holder: dict[str, object]) -> UserError:
        who = f"process {holder.get('process', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
        return UserError(
            f"{self.path.parent}: another job writes this run's folder ({who}); wait for its end or stop it, or give "
            f"this "
            "run another run.name"
        )

    def _write(self, holder: dict[str, object]) -> None:
        with suppress(OSError):  # the kernel's lock holds all the same
            self._file.truncate(0)
            self._file.write(json.dumps(holder) + "\n" if holder else "")
            self._file.flush()
