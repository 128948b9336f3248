"""What the ranks of a test world do to break a save, and to see what is left."""

import errno
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from r1zero.config import Checkpoint, Config, MegatronGrid, Run, UserError
from r1zero.distributed import host, layout
from tests.model.cases import Built, build_on
from tests.oracles.transformers_model import Oracle


class Killed(BaseException):
    """What nothing catches, at a moment of a save."""


@contextmanager
def killed_at(moment: int) -> Iterator[list[str]]:
    """The so many-th write, flush, rename or removal of a checkpoint's files does half of its work, if it can, and then
    nothing goes on.

    Yields the names of what was done.
    """
    from r1zero.checkpoint import manifest, step_folders

    done: list[str] = []

    def dying(name: str, real: Any, half: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) > moment:
                if len(done) == moment + 1:
                    half(*args)
                raise Killed
            return real(*args, **kwargs)

        return call

    def half_write(file: Any, data: Any) -> None:
        file._file.write(memoryview(data)[: memoryview(data).nbytes // 2])
        file._file.flush()

    def half_removal(path: Path) -> None:
        next(p for p in sorted(path.iterdir()) if p.name != manifest.NAME).unlink()

    with ExitStack() as stack:
        for owner, name, half in (
            (manifest.HashedFile, "write", half_write),
            (manifest, "_sync", lambda *_: None),
            (manifest.os, "rename", lambda *_: None),
            (manifest.os, "replace", lambda *_: None),
            (step_folders.shutil, "rmtree", half_removal),
        ):
            real = getattr(owner, name)
            stack.enter_context(mock.patch.object(owner, name, dying(name, real, half)))
        yield done


def write(built: Built, folder: Path, iteration: int, keep: Checkpoint = Checkpoint()) -> None:
    from r1zero.checkpoint import saving

    with torch.no_grad():
        for parameter in built.chunks[0].parameters():
            parameter.fill_(iteration)
    saving.save(folder, iteration, built.trained, {"iteration": iteration}, keep)


def die_at_every_moment(rank: int, oracle: Oracle, folder: Path) -> list[tuple[str, int, int, list[str]]]:
    """For each flush, rename and removal, and some of the writes: (what, iteration of the newest complete checkpoint,
    the weights' value in it, what the folder holds after the next save)."""
    from r1zero.checkpoint import step_folders, training

    built = build_on(oracle, MegatronGrid())
    for iteration in (1, 2):
        write(built, folder, iteration)
    before = shutil.copytree(folder, folder.with_name("before"))
    with killed_at(1 << 30) as moments:
        write(built, folder, 3)
    writes = [i for i, what in enumerate(moments) if what == "write"]
    chosen = {i for i, what in enumerate(moments) if what != "write"} | set(writes[:: len(writes) // 5]) | {writes[-1]}
    seen = []
    for moment in sorted(chosen):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        with killed_at(moment):
            try:
                write(built, folder, 3)
            except (Killed, RuntimeError):  # torch.save turns the first into the second
                pass
        found = step_folders.newest(folder)
        training.load(found, built.trained)
        values = {float(v.detach()) for p in built.chunks[0].parameters() for v in (p.min(), p.max())}
        assert found.extra == {"iteration": found.iteration} and len(values) == 1
        write(built, folder, 4)
        seen.append((moments[moment], found.iteration, int(values.pop()), sorted(p.name for p in folder.iterdir())))
    return seen


def save_two(rank: int, oracle: Oracle, place: MegatronGrid, folder: Path) -> None:
    built = build_on(oracle, place)
    for iteration in (1, 2):
        write(built, folder, iteration)


def newest(rank: int, folder: Path) -> Any:
    """(iteration, warnings of this rank), or the sentence of the error."""
    from r1zero.checkpoint import step_folders

    warnings: list[str] = []
    with mock.patch.object(step_folders.log, "warning", lambda text, *args: warnings.append(text % args)):
        try:
            found = step_folders.newest(folder)
        except UserError as error:
            return str(error)
    return found.iteration if found else None, warnings


def save_without_room(rank: int, oracle: Oracle, place: MegatronGrid, folder: Path, how: str) -> str:
    """The sentence of a save whose files may not grow on rank 1, or whose disk is too small."""
    built = build_on(oracle, place)
    write(built, folder, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExitStack() as stack:
        if how == "disk":
            stack.enter_context(mock.patch.object(shutil, "disk_usage", lambda path: mock.Mock(free=100_000)))
        elif rank == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, before)
        try:
            write(built, folder, 2)
        except UserError as error:
            return str(error)
    return ""


def save_while_the_disk_fills(
    rank: int, oracle: Oracle, disk: Path, shares: list[float]
) -> list[tuple[str, list[str], int, list[str]]]:
    """On a small disk that still seems to have room: for each share of a checkpoint's bytes that is really left (the
    error's sentence, what the folder holds then, the newest iteration, and what the folder holds after a save with room
    again)."""
    from r1zero.checkpoint import step_folders

    built, folder, ballast = build_on(oracle, MegatronGrid()), disk / "checkpoints", disk / "ballast"
    seen = []
    for number, share in enumerate(shares):
        write(built, folder, 2 * number + 1, Checkpoint(keep=1))
        (whole,) = folder.glob("step_*")
        size, room = sum(path.stat().st_size for path in whole.iterdir()), step_folders.ROOM_BYTES
        left = max(
            int(size * share) + room, 2 * room
        )  # the first room is given back before the large files are written
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - left))
        sentence = ""
        with mock.patch.object(shutil, "disk_usage", lambda path: mock.Mock(free=1 << 40)):
            try:
                write(built, folder, 2 * number + 2, Checkpoint(keep=1))
            except UserError as error:
                sentence = str(error)
        there = sorted(path.name for path in folder.iterdir())
        found = step_folders.newest(folder)
        ballast.unlink()
        write(built, folder, 2 * number + 2, Checkpoint(keep=1))
        seen.append((sentence, there, found.iteration - 2 * number, sorted(path.name for path in folder.iterdir())))
    return seen


def save_six(rank: int, oracle: Oracle, folder: Path) -> list[str]:
    built = build_on(oracle, MegatronGrid())
    for iteration in range(1, 7):
        write(built, folder, iteration, Checkpoint(keep=2, keep_every=3))
    return sorted(path.name for path in folder.iterdir())


def load_another_model(rank: int, oracle: Oracle, folder: Path) -> str:
    from r1zero.checkpoint import step_folders, training

    built = build_on(oracle, MegatronGrid())
    try:
        training.load(step_folders.newest(folder), built.trained)
    except UserError as error:
        return str(error)
    return ""


FILE_TOO_LARGE = os.strerror(errno.EFBIG)


def memory_of_a_save(rank: int, oracle: Oracle, folder: Path, piece: int) -> tuple[int, int]:
    """Bytes by which resident memory grows at most while a model with a large vocabulary is saved in pieces of `piece`
    bytes, and the bytes of the checkpoint."""
    from r1zero.checkpoint import saving, state_shards
    from r1zero.model import build
    from r1zero.model.families import read_shape
    from r1zero.model.optimizer import build_optimizer

    cfg = Config(run=Run(dtype="float32"))
    grids = layout._megatron("layout.train", MegatronGrid(), 1)
    hosts, shape = build.initialize(grids, "cpu", 1), replace(read_shape(oracle.folder), vocab_size=65536)
    chunks = build.build_model(shape, cfg, grids, True)
    for parameter in chunks[0].parameters():
        torch.nn.init.normal_(parameter)
    optimizer, scheduler = build_optimizer(chunks, cfg.optimizer, grids)
    chunks[0].zero_grad_buffer()
    optimizer.step()
    built = Built(grids, shape, chunks, optimizer, scheduler, cfg, hosts)

    def resident(name: str) -> int:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

    with torch.no_grad(), mock.patch.object(state_shards, "CHUNK_BYTES", piece):
        saving.save(folder, 1, built.trained, {}, Checkpoint(keep=1))  # allocates what stays
        with mock.patch.object(host, "available_memory", return_value=0):
            host.give_back_memory("cpu")  # what earlier tests have freed
        Path("/proc/self/clear_refs").write_text("5")  # forget the highest so far
        before = resident("VmRSS")
        saving.save(folder, 2, built.trained, {}, Checkpoint(keep=1))
    return resident("VmHWM") - before, sum(path.stat().st_size for path in (folder / "step_2").iterdir())
