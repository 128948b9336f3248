"""A lock that lets only one job at a time write to a run's folder. It names its holder and is released if that dies.

It is a kernel lock (flock) on a file in the folder, so it ends with the process in any case. Some file systems do not
share such locks between hosts. For these, the holder regularly renews the file's modification time.
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
"""A holder on another host that has not renewed its lock for this many seconds is considered dead."""


class RunLock:
    """Held from construction until `release` or the end of the process."""

    def __init__(self, folder: Path):
        """Raises UserError if the folder cannot be written, or if another live job holds it (with host and process)."""
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
        except OSError:  # the file system has no such locks, so only the file's time counts
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
        """Show other hosts that this process is alive. Called often, from any thread."""
        if time.monotonic() - self._renewed > RENEW_S:
            self._renewed = time.monotonic()
            with suppress(OSError):  # a full disk must not fail here
                os.utime(self._file.fileno())

    def release(self) -> None:
        """Give up the lock, so that another job may write to the folder."""
        self._write({})
        self._file.close()

    @property
    def _host(self) -> str:
        return socket.gethostname()

    def _holder(self) -> dict[str, object]:
        """Returns what the last holder wrote; nothing if that is unreadable, for example after a full disk."""
        self._file.seek(0)
        try:
            found = json.loads(self._file.read() or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _age_s(self) -> float:
        """Returns the seconds since the file was written, by the file system's clock."""
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
            "this run another run.name"
        )

    def _write(self, holder: dict[str, object]) -> None:
        with suppress(OSError):  # the kernel's lock is held in any case
            self._file.truncate(0)
            self._file.write(json.dumps(holder) + "\n" if holder else "")
            self._file.flush()
