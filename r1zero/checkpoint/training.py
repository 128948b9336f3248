"""Checkpoints of a training run, in megatron-core's distributed format. A run resumes from the newest complete one.

A checkpoint is a folder `step_N` in the run's `checkpoints`; the file `latest` names the newest. saving.py writes it
under a temporary name, hashing the files as they are written, seals it with a manifest (see manifest.py), and renames
it. It is complete if it has its final name and all files agree with the manifest (see step_folders.newest). This module
reads it.

The content does not depend on the layout and can be loaded into any other, except for the
random generators' states: each rank has its own, so they need the same layout.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

from r1zero.checkpoint import conversion, hf_export, state_shards
from r1zero.checkpoint.dist_files import DistFolder
from r1zero.checkpoint.manifest import CorruptError
from r1zero.checkpoint.step_folders import CheckpointInfo, gather
from r1zero.config import UserError
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
    if checkpoint.layout == layout():
        file = checkpoint.path / generators_file(trained.group.rank())
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


def generators_file(rank: int) -> str:
    return f"generators_{rank}.pt"


def generators() -> dict[str, Any]:
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


def layout() -> dict[str, int]:
    return {
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "ep": parallel_state.get_expert_model_parallel_world_size(),
        "dp": parallel_state.get_data_parallel_world_size(),
    }
