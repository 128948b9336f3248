"""The folders `step_N` with a run's checkpoints: preparing, publishing and retaining them, and finding the newest."""

import logging
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from r1zero.checkpoint import manifest
from r1zero.checkpoint.manifest import CorruptError
from r1zero.config import Checkpoint, UserError

log = logging.getLogger(__name__)

STEP = re.compile(r"step_(\d+)")
BEST = "best"
PLACEHOLDERS, ROOM_BYTES = ("room_first.tmp", "room_last.tmp"), 1 << 20
"""Placeholder files that reserve disk space for the small files that one rank writes before and after all ranks write
the large ones, at times when it cannot tell the other ranks that it failed."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint and what its manifest states. layout: the parallel degrees with which it was written."""

    path: Path
    iteration: int
    extra: dict[str, Any]
    layout: dict[str, int]


def prepare(folder: Path, aside: Path, needed: int) -> str:
    """Create an empty temporary folder beside the final one. Returns a problem, or an empty text."""
    try:
        for stale in folder.glob("*.tmp"):  # from an interrupted save
            _remove(stale)
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)  # a link's target may not exist yet
        aside.mkdir()
        for name in PLACEHOLDERS:
            with manifest.HashedFile(folder / name) as file:
                file.write(bytes(ROOM_BYTES))
        free = shutil.disk_usage(aside).free
    except OSError as error:
        discard(aside)
        return f"cannot be written ({error.strerror}); make room, or check the run's folder (run.dir)"
    if free < needed * 1.01 + ROOM_BYTES:
        discard(aside)
        return (
            f"needs {needed / 1e9:.3f} GB, but the disk has {free / 1e9:.3f} GB free; make room, lower "
            "checkpoint.keep, or put run.dir on a larger disk"
        )
    return ""


def discard(aside: Path) -> None:
    """Remove what a failed save has written, as far as the disk allows."""
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        for name in PLACEHOLDERS:
            remove_placeholder(aside.parent, name)


def remove_placeholder(folder: Path, name: str) -> None:
    """Remove a placeholder file, so that its disk space can be used."""
    (folder / name).unlink(missing_ok=True)


def put_in_place(aside: Path, final: Path, keep: Checkpoint) -> None:
    """Rename the folder, update `latest`, and remove old checkpoints.

    The newest `keep` are kept, those of every `keep_every` iterations, and the one marked as the best.
    """
    if final.exists():  # it must be corrupt: the run would have continued from a complete one
        _remove(final)
    manifest.publish(aside, final)
    manifest.write_text(final.parent / "latest", final.name + "\n")
    best = _best(final.parent)
    for path in _steps(final.parent)[keep.keep :]:
        kept = keep.keep_every and int(path.name.removeprefix("step_")) % keep.keep_every == 0
        if not kept and path.name != best:
            _remove(path)


def mark_best(folder: Path, iteration: int) -> None:
    """Write the name of the best checkpoint to the file `best` in `folder`, so that `put_in_place` keeps it.

    If the checkpoint of this iteration does not exist, the file stays as it is.
    """
    name = f"step_{iteration}"
    if (folder / name).is_dir() and _best(folder) != name:
        manifest.write_text(folder / BEST, name + "\n")


def _best(folder: Path) -> str:
    """Returns the folder name of the best checkpoint, or an empty text if none is marked."""
    file = folder / BEST
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _remove(path: Path) -> None:
    """Rename a folder before removing it, so that the old name never refers to half a folder."""
    if path.is_dir() and path.suffix != ".tmp":
        gone = path.with_name(path.name + ".old.tmp")
        os.rename(path, gone)
        path = gone
    # A link is removed, but not its target.
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _steps(folder: Path) -> list[Path]:
    """Returns the folders with names of checkpoints, newest first."""
    found = (
        [(int(match[1]), path) for path in folder.iterdir() if (match := STEP.fullmatch(path.name))]
        if folder.is_dir()
        else []
    )
    return [path for _, path in sorted(found, reverse=True)]


def newest(folder: Path) -> CheckpointInfo | None:
    """Returns the newest complete checkpoint, or None if there is none. Collective over all ranks of the world.

    Every file is verified; the ranks share the reading. A corrupt checkpoint is reported and the previous one is used.
    Raises UserError if there are checkpoints but none is complete.
    """
    candidates = [path.name for path in _steps(folder)] if dist.get_rank() == 0 else []
    complaints = []
    for name in _broadcast(candidates):
        body, problem = _read(folder / name)
        if not problem:
            return CheckpointInfo(folder / name, body["iteration"], body["extra"], body["layout"])
        complaints.append(f"{name}: {problem}")
        if dist.get_rank() == 0:
            log.warning("%s is corrupt and is skipped: %s", folder / name, problem)
    if complaints:
        raise UserError(
            f"{folder}: none of its checkpoints is complete ({'; '.join(complaints)}); remove the folder to start anew"
        )
    return None


def open_checkpoint(path: Path) -> CheckpointInfo:
    """Returns the checkpoint in the folder `path`, after verifying its files as `newest` does.

    Collective over all ranks of the world. Raises UserError if the checkpoint is not complete.
    """
    body, problem = _read(path)
    if problem:
        raise UserError(f"{path}: is not a complete checkpoint ({problem}); name another one")
    return CheckpointInfo(path, body["iteration"], body["extra"], body["layout"])


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Returns the manifest and a problem with the folder, or an empty text; both are the same on every rank."""
    body: dict[str, Any] = {}
    problem = ""
    if dist.get_rank() == 0:
        try:
            body = manifest.read(path)
        except CorruptError as error:
            problem = str(error)
    body, problem = _broadcast([body, problem])
    if problem:
        return body, problem
    for name, segments in sorted(body["files"].items())[dist.get_rank() :: dist.get_world_size()]:
        try:
            manifest.check(path, name, segments)
        except CorruptError as error:
            problem = str(error)
    return body, next((p for p in gather(problem, dist.group.WORLD) if p), "")


def gather(value: Any, group: Any) -> list[Any]:
    """Returns the value of every rank of a group. Collective over the group."""
    found = [None] * group.size()
    dist.all_gather_object(found, value, group=group)
    return found


def _broadcast(value: list[Any]) -> list[Any]:
    """Returns rank 0's list, which may have any length."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
