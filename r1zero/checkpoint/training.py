"""Checkpoints of a training run, in megatron-core's distributed format. A run resumes from the newest complete one.

A checkpoint is a folder `step_N` in the run's `checkpoints`; the file `latest` names the newest. `save` writes it under
a temporary name, hashing the files as they are written, seals it with a manifest (see manifest.py), and renames it. It
is complete if it has its final name and all files agree with the manifest (see step_folders.newest).

Each rank writes its own part of weights, master weights and Adam's moments from wherever they are, one rectangle at a
time (see state_shards.py). The content does not depend on the layout and can be loaded into any other, except for the
random generators' states: each rank has its own, so they need the same layout.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo

from r1zero.checkpoint import conversion, hf_export, manifest, state_shards, step_folders
from r1zero.checkpoint.dist_files import SUFFIX, Chunk, DistFolder, append, write_index
from r1zero.checkpoint.manifest import CorruptError, HashedFile, Segment
from r1zero.checkpoint.step_folders import CheckpointInfo, gather
from r1zero.config import Checkpoint, UserError
from r1zero.distributed.layout import MegatronGrids
from r1zero.model import mapping
from r1zero.model.shape import Shape

OPTIMIZER = "optimizer.state."
"""Prefix to the name of a state and the key of its parameter, as in megatron-core's fully reshardable format."""
MASTER = "param"


def _flat(parameter: Tensor) -> Tensor:
    return parameter.detach().view(-1)


@dataclass(frozen=True)
class TrainedModel:
    """The trained model on one rank, with what its checkpoints need."""

    chunks: list[torch.nn.Module]
    optimizer: Any
    scheduler: OptimizerParamScheduler
    shape: Shape
    grids: MegatronGrids
    group: dist.ProcessGroup
    """A gloo group of all ranks that train."""
    weights_of: Callable[[Tensor], Tensor] = _flat
    """Returns a parameter's elements, flat, from wherever they are now."""
    content_of: Callable[[Tensor], Tensor] = Tensor.detach
    """Returns the elements of a master weight or a moment, from wherever they are now."""


def save(folder: Path, iteration: int, trained: TrainedModel, extra: dict[str, Any], keep: Checkpoint) -> None:
    """Write `folder/step_<iteration>`. Collective over the ranks that train.

    extra: JSON values, the same on all ranks. keep: the config's section, of which only the retention is used.

    Raises UserError on every rank if the disk is too small or cannot be written. Older checkpoints are then unchanged.
    """
    group, final = trained.group, folder / f"step_{iteration}"
    aside = final.with_name(final.name + ".tmp")
    pieces = _pieces(trained)
    needed = sum(gather(sum(hf_export.nbytes(chunk.dtype, chunk.sizes) for chunk, _ in pieces), group))
    _agree(group, final, step_folders.prepare(folder, aside, needed) if group.rank() == 0 else "")
    problem, written = "", None
    try:
        if group.rank() == 0:
            step_folders.remove_placeholder(folder, step_folders.PLACEHOLDERS[0])
        written = _write(aside, group.rank(), pieces)
    except OSError as error:
        problem = f"could not be written (rank {dist.get_rank()}: {error}); make room"
    problems = gather(problem, group)
    if any(problems) and group.rank() == 0:
        step_folders.discard(aside)
    _agree(group, final, "; ".join(filter(None, problems)))
    every = gather(written, group)
    if group.rank() == 0:
        facts = {
            "iteration": iteration,
            "extra": extra,
            "layout": _layout(),
            "scheduler": trained.scheduler.state_dict(),
            "optimizer_step": state_shards.get_step(trained.optimizer),
        }
        problem = _finish(aside, final, every, facts, keep)
    _agree(group, final, problem)


def _agree(group: dist.ProcessGroup, final: Path, problem: str) -> None:
    """Raises UserError on all ranks of the group if the first one has a problem; the others' text is ignored."""
    if problem := gather(problem, group)[0]:
        raise UserError(f"{final}: {problem}")


@dataclass(frozen=True)
class _Written:
    """What one rank has written."""

    chunks: list[tuple[Chunk, _StorageInfo]]
    files: dict[str, list[Segment]]


def _pieces(trained: TrainedModel) -> list[tuple[Chunk, Callable[[], Tensor]]]:
    """Returns each rectangle that this rank writes, and a function that returns its content. Weights come first."""
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
                pieces.append(
                    (
                        state_shards.chunk(slot, f"{OPTIMIZER}{name}.", rectangle, torch.float32),
                        partial(_state, trained, shard, name, rectangle),
                    )
                )
    return pieces


def _weight_pieces(
    trained: TrainedModel, slot: state_shards.ParameterSlot, begin: int, end: int
) -> Iterator[tuple[Chunk, Callable[[], Tensor]]]:
    for cut in slot.rectangles(begin, end):
        yield (state_shards.chunk(slot, "", cut, slot.parameter.dtype), partial(_weight, trained, slot.parameter, cut))


def _weight(trained: TrainedModel, parameter: Tensor, cut: state_shards.Rectangle) -> Tensor:
    return trained.weights_of(parameter)[cut.begin : cut.end].view(cut.sizes)


def _state(trained: TrainedModel, shard: state_shards.OptimizerShard, name: str, cut: state_shards.Rectangle) -> Tensor:
    tensor = shard.master if name == MASTER else shard.state.get(name)
    if tensor is None:  # before the first step
        return torch.zeros(cut.sizes)
    return trained.content_of(tensor)[cut.begin - shard.begin : cut.end - shard.begin].view(cut.sizes)


def _write(aside: Path, rank: int, pieces: list[tuple[Chunk, Callable[[], Tensor]]]) -> _Written:
    """Write this rank's files: weights, optimizer state and random generators. Raises OSError."""
    chunks, files = [], {}
    by_file = [
        [piece for piece in pieces if piece[0].key.startswith(OPTIMIZER) == optimizer] for optimizer in (False, True)
    ]
    for number, in_file in enumerate(by_file):
        if in_file:
            with HashedFile(aside / f"__{rank}_{number}{SUFFIX}") as file:
                chunks += [(chunk, append(file, content())) for chunk, content in in_file]
            files[file.path.name] = file.segments
    with HashedFile(aside / _generators_file(rank)) as file:
        torch.save(_generators(), file.binary)
    files[file.path.name] = file.segments
    return _Written(chunks, files)


def _finish(aside: Path, final: Path, every: list[_Written], facts: dict[str, Any], keep: Checkpoint) -> str:
    """Complete the checkpoint, on the first rank: write index and manifest, and give the folder its final name.

    Returns a problem, or an empty text.
    """
    try:
        write_index(aside, [chunk for written in every for chunk in written.chunks])
        step_folders.remove_placeholder(final.parent, step_folders.PLACEHOLDERS[1])
        files = {name: segments for written in every for name, segments in written.files.items()}
        files |= {path.name: manifest.adopt(path) for path in sorted(aside.iterdir()) if path.name not in files}
        manifest.seal(aside, facts, files)
        step_folders.put_in_place(aside, final, keep)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        step_folders.discard(aside)
        return f"could not be finished ({error}); make room"
    return ""


def load(checkpoint: CheckpointInfo, trained: TrainedModel) -> None:
    """Load weights, optimizer and schedule, and in the same layout the random generators.

    Collective over the ranks that train. Weights and optimizer state must be on the device. Raises UserError if the
    checkpoint is of another model.
    """
    folder = conversion.open_weights(checkpoint.path, trained.shape)
    local = mapping.local_tensors(trained.chunks, trained.shape, trained.grids)
    slots = {
        id(p.parameter): p for p in state_shards.parameter_slots(local, trained.shape, trained.grids, dist.get_rank())
    }
    with torch.no_grad():
        for one in local.values():
            if one.weight.fp32:
                _read(folder, slots[id(one.parameter)], "", 0, one.parameter.view(-1))
        for shard in state_shards.optimizer_shards(trained.optimizer):
            slot = slots[id(shard.parameter)]
            own = shard.parameter.detach().view(-1)[shard.begin : shard.end]
            _read(folder, slot, "", shard.begin, own)
            if shard.parameter.dtype != torch.float32:
                _read(folder, slot, f"{OPTIMIZER}{MASTER}.", shard.begin, shard.master)
            state_shards.allocate_moments(shard)
            for name in state_shards.MOMENTS:
                _read(folder, slot, f"{OPTIMIZER}{name}.", shard.begin, shard.state[name])
    chunk: Any  # megatron-core's wrapper; torch.nn.Module does not declare its methods
    for chunk in trained.chunks:  # each data-parallel rank has read only its own part of the weights
        chunk.start_param_sync(force_sync=True)
    state_shards.set_step(trained.optimizer, folder.facts["optimizer_step"])
    trained.scheduler.load_state_dict(folder.facts["scheduler"])
    if checkpoint.layout == _layout():
        file = checkpoint.path / _generators_file(trained.group.rank())
        _set_generators(torch.load(file, weights_only=True))


def _read(folder: DistFolder, slot: state_shards.ParameterSlot, prefix: str, begin: int, into: Tensor) -> None:
    """Read elements of a flattened parameter, from `begin` on, to fill `into`. Raises UserError if they are corrupt."""
    for cut in slot.rectangles(begin, begin + into.numel()):
        try:
            tensor = folder.region(prefix + slot.key, cut.offsets, cut.sizes)
        except CorruptError as error:
            raise UserError(
                f"{folder.path}: is corrupt ({error}); remove it, so that the previous checkpoint is used"
            ) from None
        into[cut.begin - begin : cut.end - begin].copy_(tensor.view(-1))


def load_weights(
    chunks: list[torch.nn.Module], shape: Shape, grids: MegatronGrids, path: str, source: str, group: dist.ProcessGroup
) -> None:
    """Fill the model from a folder that `convert.py to-mcore` made from `source`; each rank reads only its slices.

    Collective over `group`, the model's ranks. Raises UserError if the folder is corrupt or made from another model.
    """
    folder = conversion.open_weights(Path(path), shape)
    conversion.check_source(folder, gather(hf_export.fingerprint(Path(source)) if group.rank() == 0 else "", group)[0])
    for local in mapping.local_tensors(chunks, shape, grids).values():
        view = local.view()
        with torch.no_grad():
            view.copy_(conversion.read(folder, local.weight, local.part).view(view.shape))


def _generators_file(rank: int) -> str:
    return f"generators_{rank}.pt"


def _generators() -> dict[str, Any]:
    """Returns this rank's generator states: Python's, numpy's, torch's, and the device's from megatron's tracker."""
    state: Any = np.random.get_state()  # a tuple; numpy's stub declares the dict of legacy=False
    name, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "tracker": get_cuda_rng_tracker().get_states(),
    }


def _set_generators(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(state["tracker"])


def _layout() -> dict[str, int]:
    return {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "ep": parallel_state.get_expert_model_parallel_world_size(),
        "dp": parallel_state.get_data_parallel_world_size(),
    }
