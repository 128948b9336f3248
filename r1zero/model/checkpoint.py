"""Checkpoints of a run: megatron-core's distributed format, written aside, hashed, renamed; resumed where the newest whole one ends.

A checkpoint is a folder `step_N` under the run's `checkpoints`; `latest` there names the newest. It does not depend on the
layout: weights, masters, Adam's moments and the schedule load into any other. Only the generators' states, of which each
rank has its own, need the same one.
"""

import random
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed.checkpoint as torch_checkpoint
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, is_main_replica
from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model

from r1zero.config import Checkpoint, UserError
from r1zero.layout import MegatronGrids
from r1zero.model import conversion, hf_export, manifest, step_folders
from r1zero.model.dist_files import Writer
from r1zero.model.mapping import local_tensors
from r1zero.model.shape import Shape
from r1zero.model.step_folders import Found, gather
from r1zero.subworld import as_world

# The only one of megatron-core 0.16's formats of optimizer state that loads into any layout.
FORMAT = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True, "singleton_local_shards": False}


def save(folder: Path, iteration: int, chunks: list[torch.nn.Module], optimizer: Any, scheduler: OptimizerParamScheduler,
         extra: dict[str, Any], keep: Checkpoint) -> None:
    """Write `folder/step_<iteration>`. Collective over the ranks that train. extra: the same JSON values on all of them.
    keep: the config's section, of which only what is kept is read.

    Raises UserError on each of them where the disk is too small or cannot be written; older checkpoints then stay as they are.
    """
    group = _everyone()
    final = folder / f"step_{iteration}"
    aside = final.with_name(final.name + ".tmp")
    _allocate(optimizer)
    state = _state(chunks, optimizer, scheduler, loading=False)
    needed = sum(gather(_bytes(state), group))
    problem = step_folders.prepare(folder, aside, needed) if group.rank() == 0 else ""
    if problem := gather(problem, group)[0]:
        raise UserError(f"{final}: {problem}")
    if group.rank() == 0:
        step_folders.use_room(folder, step_folders.ROOMS[0])
    writer = Writer(str(aside))
    strategy = FullyParallelSaveStrategyWrapper(_Strategy(writer), parallel_state.get_data_parallel_group(with_context_parallel=True))
    try:
        with as_world(group):
            dist_checkpointing.save(state, str(aside), strategy, content_metadata=FORMAT)
    except torch_checkpoint.api.CheckpointException as error:
        reasons = {f"rank {rank}: {reason}" for rank, (reason, _) in error.failures.items() if isinstance(reason, OSError)}
        if not reasons:
            raise
        if group.rank() == 0:
            step_folders.discard(aside)
        raise UserError(f"{final}: could not be written ({'; '.join(sorted(reasons))}); make room") from None
    files = {name: segments for part in gather(writer.files, group) for name, segments in part.items()}
    problem = ""
    if group.rank() == 0:
        try:
            files |= {path.name: manifest.adopt(path) for path in sorted(aside.iterdir()) if path.name not in files}
            manifest.seal(aside, {"iteration": iteration, "extra": extra, "layout": _layout()}, files)
            step_folders.put_in_place(aside, final, keep)
        except OSError as error:
            problem = f"could not be finished ({error}); make room"
            step_folders.discard(aside)
    if problem := gather(problem, group)[0]:
        raise UserError(f"{final}: {problem}")


class _Strategy(SaveShardedStrategy):
    """megatron's state through torch's own saving, in this process: megatron's forks a process for each file."""

    can_handle_sharded_objects = True

    def __init__(self, writer: Writer):
        super().__init__("torch_dist", 1)
        self.writer = writer

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Any) -> None:
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, keep_only_main_replica=True)
        planner = MCoreSavePlanner(flatten_state_dict=False)
        torch_checkpoint.save(mcore_to_pyt_state_dict(by_key), storage_writer=self.writer, planner=planner)
        step_folders.use_room(Path(checkpoint_dir).parent, step_folders.ROOMS[1])


def load(found: Found, chunks: list[torch.nn.Module], optimizer: Any, scheduler: OptimizerParamScheduler) -> None:
    """Weights, optimizer, schedule; in the same layout the generators, too. Collective over the ranks that train.

    Raises UserError where the checkpoint is of another model.
    """
    _allocate(optimizer)
    state = _state(chunks, optimizer, scheduler, loading=True)
    if found.layout != _layout():
        del state["rng"]
    try:
        with as_world(_everyone()):
            loaded = dist_checkpointing.load(state, str(found.path))
    except torch_checkpoint.api.CheckpointException as error:
        reasons = [reason for reason, _ in error.failures.values() if isinstance(reason, (KeyError, CheckpointingException))]
        if not reasons:
            raise
        # The first lacks a key and lists all it has instead, the second says which shapes differ.
        reason = str(reasons[0].args[0]).split(":")[0]
        raise UserError(f"{found.path}: is not a checkpoint of this model ({reason}); give the run another name or folder") from None
    unwrap_model(chunks[0]).load_state_dict(loaded["model"], strict=False)
    step = dist_checkpointing.load_common_state_dict(str(found.path))["step"]
    _set_optimizer(optimizer, loaded["optimizer"], step)
    scheduler.load_state_dict(loaded["scheduler"])
    if "rng" in loaded:
        _set_generators(loaded["rng"])


def load_weights(chunks: list[torch.nn.Module], shape: Shape, grids: MegatronGrids, path: str, source: str) -> None:
    """Fill the model from a folder that `convert.py to-mcore` made of `source`, reading this rank's slices.

    Collective over the model's ranks. Raises UserError for a folder that is torn, or made of another model.
    """
    folder = conversion.open_weights(Path(path), shape)
    group = _everyone()
    conversion.check_source(folder, gather(hf_export.fingerprint(Path(source)) if group.rank() == 0 else "", group)[0])
    for local in local_tensors(chunks, shape, grids).values():
        view = local.view()
        with torch.no_grad():
            view.copy_(conversion.read(folder, local.weight, local.part).view(view.shape))


def _state(chunks: list[torch.nn.Module], optimizer: Any, scheduler: OptimizerParamScheduler, *, loading: bool) -> dict[str, Any]:
    model = unwrap_model(chunks[0]).sharded_state_dict(
        metadata={**FORMAT, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)})
    # Modules of transformer-engine have an extra state; here it is None for each of them.
    model = {name: value for name, value in model.items() if not isinstance(value, ShardedObject)}
    state = {"model": model, "scheduler": scheduler.state_dict(), "rng": _generators(),
             "optimizer": optimizer.sharded_state_dict(model, is_loading=loading, metadata=FORMAT)}
    if not loading:
        state["step"] = _step(optimizer)
    return state


def _bytes(state: dict[str, Any]) -> int:
    """Of the tensors of which this rank has the first copy."""
    return sum(value.data.nbytes for value in nested_values(state)
               if hasattr(value, "replica_id") and torch.is_tensor(value.data) and is_main_replica(value.replica_id))


def _parts(optimizer: Any) -> list[DistributedOptimizer]:
    """One for dense parameters, with experts over several ranks another one for them."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _step(optimizer: Any) -> float:
    """Updates that Adam counts; the same for all parameters."""
    return float(_parts(optimizer)[0].state_dict()["optimizer"]["param_groups"][0]["step"])


def _allocate(optimizer: Any) -> None:
    """torch's Adam makes its state at the first step, and megatron wants to see it before."""
    for part in _parts(optimizer):
        if not isinstance(part.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            continue
        for parameter in (p for group in part.optimizer.param_groups for p in group["params"]):
            if not part.optimizer.state[parameter]:
                part.optimizer.state[parameter].update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter),
                                                       exp_avg_sq=torch.zeros_like(parameter))


def _set_optimizer(optimizer: Any, loaded: Any, step: float) -> None:
    """How many optimizers there are depends on the layout: all but the tensors comes from the ones that run."""
    parts = _parts(optimizer)
    states = []
    for number, part in enumerate(parts):
        state = part.state_dict()
        for group in state["optimizer"]["param_groups"]:
            group["step"] = step
        state["param_state"] = (loaded if len(parts) == 1 else loaded[number])["param_state"]
        state["param_state_sharding_type"] = FORMAT["distrib_optim_sharding_type"]
        states.append(state)
    with torch.no_grad(), mock.patch.object(DistributedOptimizer, "_set_main_param_and_optimizer_states", _copy_in):
        optimizer.load_state_dict(states[0] if len(parts) == 1 else dict(enumerate(states)))
    for part in parts:
        for state in part.optimizer.state.values():
            # All parameters were given one tensor, to which torch's Adam then adds 1 for each of them.
            state["step"] = state["step"].clone()


def _copy_in(part: DistributedOptimizer, parameter: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
    """megatron-core 0.16.1's own asks for a "step" among the tensors, where torch's Adam is used."""
    group, order = part.model_param_group_index_map[parameter]
    main = part.optimizer.param_groups[group]["params"][order]
    for name, own in {"param": main, **part.optimizer.state[main]}.items():
        if name != "step":
            own.copy_(tensors[name])


def _generators() -> ShardedObject:
    """Every rank's own: Python's, numpy's, torch's, the device's by way of megatron's tracker."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(),
             "tracker": get_cuda_rng_tracker().get_states()}
    axes = [(parallel_state.get_pipeline_model_parallel_world_size(), parallel_state.get_pipeline_model_parallel_rank()),
            (parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()),
            (parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank())]
    return ShardedObject("rng", state, tuple(size for size, _ in axes), tuple(rank for _, rank in axes), replica_id=0)


def _set_generators(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(state["tracker"])


def _layout() -> dict[str, int]:
    return {"tp": parallel_state.get_tensor_model_parallel_world_size(), "pp": parallel_state.get_pipeline_model_parallel_world_size(),
            "ep": parallel_state.get_expert_model_parallel_world_size(), "dp": parallel_state.get_data_parallel_world_size()}


def _everyone() -> Any:
    """The group of all ranks of this megatron world."""
    return parallel_state.get_intra_distributed_optimizer_instance_group()
