"""Writes checkpoints of a training run while the run goes on.

`begin` checks the disk and starts a thread that writes this rank's part of weights, master weights and Adam's moments
from wherever they are, one rectangle at a time (see state_shards.py). Nothing is copied first: none of these tensors
changes before the next update, so the files are written while the engines generate, and `PendingSave.finish` must be
called before the update. It waits for the thread, and makes the checkpoint complete. All collectives run in the main
thread.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo

from r1zero.checkpoint import hf_export, manifest, state_shards, step_folders, training
from r1zero.checkpoint.dist_files import SUFFIX, Chunk, append, write_index
from r1zero.checkpoint.manifest import HashedFile, Segment
from r1zero.checkpoint.step_folders import gather
from r1zero.checkpoint.training import MASTER, OPTIMIZER, TrainedModel
from r1zero.config import Checkpoint, UserError
from r1zero.model import mapping

_Piece = tuple[Chunk, Tensor | None]
"""A rectangle that this rank writes, and its content, which is None for zeros."""


@dataclass(frozen=True)
class _Written:
    """What one rank has written."""

    chunks: list[tuple[Chunk, _StorageInfo]]
    files: dict[str, list[Segment]]


@dataclass(frozen=True)
class PendingSave:
    """A checkpoint whose files are being written."""

    group: dist.ProcessGroup
    final: Path
    """Its folder, once it is complete."""
    facts: dict[str, Any]
    """What the manifest states."""
    keep: Checkpoint
    writing: "Future[_Written]"

    @property
    def aside(self) -> Path:
        """The folder while it is incomplete."""
        return _aside(self.final)

    def finish(self) -> None:
        """Wait until all ranks have written their files, and make the checkpoint complete. Collective over the ranks.

        Raises UserError on every rank if the disk cannot be written. Older checkpoints are then unchanged.
        """
        group, problem, written = self.group, "", None
        try:
            written = self.writing.result()
        except OSError as error:
            problem = f"could not be written (rank {dist.get_rank()}: {error}); make room"
        problems = gather(problem, group)
        if any(problems) and group.rank() == 0:
            step_folders.discard(self.aside)
        _agree(group, self.final, "; ".join(filter(None, problems)))
        every = gather(written, group)
        _agree(group, self.final, self._complete(every) if group.rank() == 0 else "")

    def _complete(self, every: list[_Written]) -> str:
        """Write index and manifest, and give the folder its final name. Returns a problem, or an empty text."""
        aside, final = self.aside, self.final
        try:
            write_index(aside, [chunk for written in every for chunk in written.chunks])
            step_folders.remove_placeholder(final.parent, step_folders.PLACEHOLDERS[1])
            files = {name: segments for written in every for name, segments in written.files.items()}
            files |= {path.name: manifest.adopt(path) for path in sorted(aside.iterdir()) if path.name not in files}
            manifest.seal(aside, self.facts, files)
            step_folders.put_in_place(aside, final, self.keep)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            step_folders.discard(aside)
            return f"could not be finished ({error}); make room"
        return ""


def begin(folder: Path, iteration: int, trained: TrainedModel, extra: dict[str, Any], keep: Checkpoint) -> PendingSave:
    """Start to write `folder/step_<iteration>`. Collective over the ranks that train.

    extra: JSON values, the same on all ranks. keep: the config's section, of which only the retention is used. Until
    `finish` has returned, weights and optimizer state must neither change nor move.

    Raises UserError on every rank if the disk is too small or cannot be written. Older checkpoints are then unchanged.
    """
    group, final = trained.group, folder / f"step_{iteration}"
    pieces = _pieces(trained)
    needed = sum(gather(sum(hf_export.nbytes(chunk.dtype, chunk.sizes) for chunk, _ in pieces), group))
    _agree(group, final, step_folders.prepare(folder, _aside(final), needed) if group.rank() == 0 else "")
    facts = {
        "iteration": iteration,
        "extra": extra,
        "layout": training.layout(),
        "scheduler": trained.scheduler.state_dict(),
        "optimizer_step": state_shards.get_step(trained.optimizer),
    }
    thread = ThreadPoolExecutor(1, "checkpoint")
    writing = thread.submit(_write, _aside(final), group.rank(), pieces, training.generators())
    thread.shutdown(wait=False)  # it ends when the files are written
    return PendingSave(group, final, facts, keep, writing)


def save(folder: Path, iteration: int, trained: TrainedModel, extra: dict[str, Any], keep: Checkpoint) -> None:
    """Write a checkpoint and wait until it is complete. Arguments and errors: see `begin` and `PendingSave.finish`."""
    begin(folder, iteration, trained, extra, keep).finish()


def _aside(final: Path) -> Path:
    return final.with_name(final.name + ".tmp")


def _agree(group: dist.ProcessGroup, final: Path, problem: str) -> None:
    """Raises UserError on all ranks of the group if the first one has a problem; the others' text is ignored."""
    if problem := gather(problem, group)[0]:
        raise UserError(f"{final}: {problem}")


def _pieces(trained: TrainedModel) -> list[_Piece]:
    """Returns each rectangle that this rank writes. Weights come first. The contents are views, not copies."""
    rank = dist.get_rank()
    local = mapping.local_tensors(trained.chunks, trained.shape, trained.grids)
    slots = {id(p.parameter): p for p in state_shards.parameter_slots(local, trained.shape, trained.grids, rank)}
    shards = [s for s in state_shards.optimizer_shards(trained.optimizer) if slots[id(s.parameter)].is_first_copy]
    pieces = [
        piece
        for shard in shards
        for piece in _weight_pieces(trained, slots[id(shard.parameter)], shard.begin, shard.end)
    ]
    for one in local.values():
        if (
            one.weight.fp32
            and slots[id(one.parameter)].is_first_copy
            and trained.grids.dense.coordinate(rank, "dp") == 0
        ):
            pieces += _weight_pieces(trained, slots[id(one.parameter)], 0, one.parameter.numel())
    for shard in shards:
        slot = slots[id(shard.parameter)]
        names = state_shards.MOMENTS if shard.parameter.dtype == torch.float32 else (MASTER, *state_shards.MOMENTS)
        for name in names:
            for rectangle in slot.rectangles(shard.begin, shard.end):
                chunk = state_shards.chunk(slot, f"{OPTIMIZER}{name}.", rectangle, torch.float32)
                pieces.append((chunk, _state(trained, shard, name, rectangle)))
    return pieces


def _weight_pieces(trained: TrainedModel, slot: state_shards.ParameterSlot, begin: int, end: int) -> Iterator[_Piece]:
    flat = trained.weights_of(slot.parameter)
    for cut in slot.rectangles(begin, end):
        yield state_shards.chunk(slot, "", cut, slot.parameter.dtype), flat[cut.begin : cut.end].view(cut.sizes)


def _state(
    trained: TrainedModel, shard: state_shards.OptimizerShard, name: str, cut: state_shards.Rectangle
) -> Tensor | None:
    tensor = shard.master if name == MASTER else shard.state.get(name)
    if tensor is None:  # before the first step
        return None
    return trained.content_of(tensor)[cut.begin - shard.begin : cut.end - shard.begin].view(cut.sizes)


def _write(aside: Path, rank: int, pieces: list[_Piece], generators: dict[str, Any]) -> _Written:
    """Write this rank's files: weights, optimizer state and random generators. Raises OSError."""
    if rank == 0:
        step_folders.remove_placeholder(aside.parent, step_folders.PLACEHOLDERS[0])
    chunks, files = [], {}
    by_file = [
        [piece for piece in pieces if piece[0].key.startswith(OPTIMIZER) == optimizer] for optimizer in (False, True)
    ]
    for number, in_file in enumerate(by_file):
        if in_file:
            with HashedFile(aside / f"__{rank}_{number}{SUFFIX}") as file:
                for chunk, content in in_file:
                    chunks.append((chunk, append(file, torch.zeros(chunk.sizes) if content is None else content)))
            files[file.path.name] = file.segments
    with HashedFile(aside / training.generators_file(rank)) as file:
        torch.save(generators, file.binary)
    files[file.path.name] = file.segments
    return _Written(chunks, files)
