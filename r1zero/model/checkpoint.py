"""Checkpoints in megatron-core's distributed format: written aside and renamed, read into the same layout or another.

A checkpoint is a folder `step_N`. megatron-core writes metadata.json last, but a folder written over a complete one keeps the old
metadata.json and loads without an error although half of its files are new: so a folder is never written twice. Rank 0 of
the grid renames `step_N.tmp` and points `latest` to it when everything is on disk.
"""

import os
import queue
import random
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Iterator
from unittest import mock

import numpy
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy, get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper, FullyParallelSaveStrategyWrapper
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model
from torch.distributed import distributed_c10d

LATEST = "latest"

# The library's default kind of sharding cannot be saved in this format; this one can be read into any layout.
_KIND = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True, "singleton_local_shards": False}


def newest(folder: Path) -> Path | None:
    """The checkpoint that `latest` names; None where there is none."""
    pointer = folder / LATEST
    return folder / pointer.read_text(encoding="utf-8").strip() if pointer.exists() else None


def extra(path: Path) -> dict[str, Any]:
    """What `save` was given beside the model. Any rank may ask, alone."""
    return dist_checkpointing.load_common_state_dict(str(path))["extra"]


def save(folder: Path, iteration: int, chunks: list[torch.nn.Module], optimizer: Any, scheduler: Any, extra: dict[str, Any],
         keep: int) -> None:
    """Write folder/step_<iteration>, point `latest` to it and delete all but the newest `keep`. Collective over the model's grid.

    optimizer, scheduler: None writes the weights only. extra: plain values, the same on all ranks.
    """
    final, aside = folder / f"step_{iteration}", folder / f"step_{iteration}.tmp"
    with _model_world(), _writing_here():
        if dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        dist.barrier()
        state = _state(chunks, optimizer, scheduler, _layout(), loading=False) | {"extra": extra}
        strategy = get_default_save_sharded_strategy("torch_dist")
        dist_checkpointing.save(state, str(aside), FullyParallelSaveStrategyWrapper(strategy, _data_group()),
                                content_metadata={**_KIND, "layout": _layout()})
        if dist.get_rank() == 0:
            _publish(folder, aside, final, keep)
        dist.barrier()


def load(path: Path, chunks: list[torch.nn.Module], optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Weights, optimizer, scheduler and generators as they were; the generators only in the layout that wrote them.

    Returns `extra`. Collective over the model's grid. optimizer, scheduler: None loads the weights only.
    """
    saved = dist_checkpointing.load_content_metadata(str(path))["layout"]
    with _model_world(), _step_is_no_tensor_of_a_parameter(), torch.no_grad():
        if optimizer:
            _allocate_adam(optimizer)
        state = _state(chunks, optimizer, scheduler, saved, loading=True)
        strategy = FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(path)), _data_group())
        found = dist_checkpointing.load(state, str(path), strategy)
        unwrap_model(chunks[0]).load_state_dict(found["model"])
        if optimizer:
            _load_optimizer(optimizer, found["optimizer"], dist_checkpointing.load_common_state_dict(str(path))["optimizer"])
            scheduler.load_state_dict(found["scheduler"])
        if "rng" in found:
            _set_generators(found["rng"])
    return extra(path)


def load_weights(path: Path, chunks: list[torch.nn.Module]) -> None:
    """The weights alone, into a model without an optimizer or before it is built."""
    load(path, chunks, None, None)


def _layout() -> list[int]:
    return [parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_pipeline_model_parallel_world_size(),
            parallel_state.get_expert_model_parallel_world_size(), parallel_state.get_data_parallel_world_size()]


def _data_group() -> dist.ProcessGroup:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _state(chunks: list[torch.nn.Module], optimizer: Any, scheduler: Any, layout: list[int], loading: bool) -> dict[str, Any]:
    """layout: of the checkpoint. The part that is not sharded must be equal on all ranks."""
    model = unwrap_model(chunks[0]).sharded_state_dict(metadata={**_KIND, "dp_cp_group": _data_group()})
    state: dict[str, Any] = {"model": model}
    if optimizer:
        state["optimizer"] = optimizer.sharded_state_dict(model, is_loading=loading, metadata=_KIND)
        state["scheduler"] = scheduler.state_dict()
        if layout == _layout():
            tp, pp, _, dp = layout
            place = (parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_tensor_model_parallel_rank(),
                     parallel_state.get_data_parallel_rank())
            state["rng"] = ShardedObject("rng", _generators(), (pp, tp, dp), place, replica_id=0)
    return state


def _generators() -> dict[str, Any]:
    return {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state(),
            "megatron": get_cuda_rng_tracker().get_states()}


def _set_generators(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(state["megatron"])


def _parts(optimizer: Any) -> list[DistributedOptimizer]:
    """One optimizer for dense weights and, with spread experts, another for theirs."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _allocate_adam(optimizer: Any) -> None:
    """Before its first step torch's Adam has no state to load into, and the library asserts that it has."""
    for part in _parts(optimizer):
        for group in part.optimizer.param_groups:
            for p in group["params"]:
                if not part.optimizer.state[p]:
                    part.optimizer.state[p].update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))


def _load_optimizer(optimizer: Any, found: dict[Any, Any], common: dict[Any, Any]) -> None:
    """What is not a tensor is taken from the running optimizer, with the saved step: how many parts there are depends on the layout."""
    parts = _parts(optimizer)
    first = common if "optimizer" in common else common[min(key for key in common if isinstance(key, int))]
    states = []
    for i, part in enumerate(parts):
        state = part.state_dict()
        for group in state["optimizer"]["param_groups"]:
            group["step"] = first["optimizer"]["param_groups"][0]["step"]
        state["param_state"] = (found if len(parts) == 1 else found[i])["param_state"]
        state["param_state_sharding_type"] = _KIND["distrib_optim_sharding_type"]
        states.append(state)
    optimizer.load_state_dict(states[0] if len(states) == 1 else dict(enumerate(states)))
    # One tensor of the step is given to all parameters, to which torch's Adam then adds 1 for each: n instead of 1.
    for part in parts:
        for held in part.optimizer.state.values():
            held["step"] = held["step"].clone()


def _publish(folder: Path, aside: Path, final: Path, keep: int) -> None:
    for file in (*aside.iterdir(), aside):
        _flush(file)
    if final.exists():   # of a run that went back to an older checkpoint
        shutil.rmtree(final)
    os.rename(aside, final)
    pointer = folder / f"{LATEST}.tmp"
    pointer.write_text(final.name + "\n", encoding="utf-8")
    _flush(pointer)
    os.replace(pointer, folder / LATEST)
    _flush(folder)
    steps = sorted((p for p in folder.glob("step_*") if p.suffix != ".tmp"), key=lambda p: int(p.name.removeprefix("step_")))
    for old in [p for p in steps if p != final][:max(0, len(steps) - keep)]:
        shutil.rmtree(old)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _model_world() -> Iterator[None]:
    """The library coordinates over torch's default group and counts ranks in it. For a model on some of the ranks that group is,
    for as long as this lasts, the model's, and its ranks are renumbered in all groups inside it."""
    everyone, default = parallel_state.get_intra_distributed_optimizer_instance_group(), dist.group.WORLD
    if everyone.size() == default.size():
        yield
        return
    numbers = {rank: i for i, rank in enumerate(dist.get_process_group_ranks(everyone))}
    held = distributed_c10d._world.pg_group_ranks
    inside = {group: {numbers[rank]: i for rank, i in members.items()} for group, members in held.items() if members.keys() <= numbers.keys()}
    with mock.patch.dict(held, inside):
        distributed_c10d._update_default_pg(everyone)
        try:
            yield
        finally:
            distributed_c10d._update_default_pg(default)


@contextmanager
def _writing_here() -> Iterator[None]:
    """Even a synchronous save forks a process for each file and spawns one for their results: not beside live collectives."""
    writer = filesystem_async.FileSystemWriterAsync

    def write(transforms: Any, use_msc: bool, rank: int, buckets: list[Any], results: queue.Queue) -> None:
        done, counted = queue.Queue(), queue.Queue()
        for i, bucket in enumerate(buckets):
            counted.put(i)
            writer.write_preloaded_data(transforms, i, bucket, done, counted, True)
        written = dict(done.get() for _ in buckets)
        failures = [result for result in written.values() if isinstance(result, Exception)]
        results.put(failures[0] if failures else written)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(filesystem_async, "_get_write_results_queue", queue.Queue))
        stack.enter_context(mock.patch.object(writer, "write_preloaded_data_multiproc", staticmethod(write)))
        yield


@contextmanager
def _step_is_no_tensor_of_a_parameter() -> Iterator[None]:
    """The library copies every entry of torch's Adam state from the checkpoint, which has no step for each parameter."""
    def copy(self: DistributedOptimizer, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        main = self.optimizer.param_groups[group]["params"][order]
        for key, target in {"param": main, **self.optimizer.state[main]}.items():
            if key != "step":
                target.copy_(tensors[key])

    with mock.patch.object(DistributedOptimizer, "_set_main_param_and_optimizer_states", copy):
        yield
