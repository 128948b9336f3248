"""What the twin's ranks do with megatron-core's model and optimizer. Each function is f(rank, ...) and returns plain
data."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.twin import project
from tests.twin.project import LENGTHS, MegatronGrid, Oracle

TARGETS = sum(LENGTHS) - len(LENGTHS)


@dataclass(frozen=True)
class Gradients:
    """Against transformers."""

    logits: float
    """Largest error of any logit relative to the largest logit; 0 on ranks before the last stage."""
    worst: float
    """Largest error of any tensor's gradient, or this rank's part of it, relative to its norm."""
    name: str
    norm: float
    """Of the whole gradient, as the optimizer has it."""
    expected_norm: float


@dataclass(frozen=True)
class TrainedModel:
    """What a rank did: loaded or not, some steps, saved."""

    adam: str
    """module.Class."""
    steps: tuple[float, ...]
    """The optimizer's own counts."""


def gradients(
    rank: int, oracle: Oracle, place: MegatronGrid, packs: int, recompute: str = "none", dtype: str = "float32"
) -> Gradients:
    model = project.build_model(oracle.folder, place, dist.get_world_size(), dtype, recompute)
    numbers = _mine(model)
    logits = _passes(model, oracle, numbers, packs)
    errors = {}
    expected, summed = oracle.gradients(), _summed(model)
    for name, local in model.local_tensors().items():
        if not local.weight.fp32:
            ours = replace(local, parameter=summed[id(local.parameter)]).tensor().cpu()
            errors[name] = float((ours - expected[name][local.part]).norm() / expected[name].norm().clamp_min(1e-12))
    worst = max(errors, key=errors.get)
    _, norm, _ = model.optimizer.step()
    whole = torch.cat([g.flatten() for g in expected.values()]).double().norm()
    return Gradients(
        _logit_error(model, oracle, numbers, packs, logits), errors[worst], worst, float(norm), float(whole)
    )


def train(
    rank: int, oracle: Oracle, place: MegatronGrid, dtype: str, folder: Path, first: int, last: int
) -> TrainedModel:
    """Steps first + 1 .. last, of which each is saved; what step `first` left is loaded."""
    model = project.build_model(oracle.folder, place, dist.get_world_size(), dtype)
    if first:
        model.load(folder)
    for step in range(first + 1, last + 1):
        _passes(model, oracle, _mine(model), 2)
        model.optimizer.step()
        model.scheduler.step(1)
        model.save(folder, step)
    adams = [part.optimizer for part in model.optimizer.chained_optimizers]
    steps = [float(group["step"]) for adam in adams for group in adam.param_groups if "step" in group]
    return TrainedModel(f"{type(adams[0]).__module__}.{type(adams[0]).__name__}", tuple(steps))


def _summed(model: Any) -> dict[int, Tensor]:
    """By a parameter's id, its gradient over all data-parallel ranks, of which each has the sum of its own share
    only."""
    found, shards = {}, model.shards()
    for part in model.optimizer.chained_optimizers:
        for buffer in part.buffers:
            flat = torch.zeros_like(buffer.grad_data)
            for shard in shards:
                if shard.parameter in buffer.param_index_map:
                    start = buffer.param_index_map[shard.parameter][0]
                    own = slice(start + shard.begin, start + shard.end)
                    flat[own] = buffer.grad_data[own]
            dist.all_reduce(flat, group=part.data_parallel_group)
            found |= {id(p): flat[first:last].view(p.shape) for p, (first, last, _) in buffer.param_index_map.items()}
    return found


def _mine(model: Any) -> list[int]:
    """Numbers of the sequences of this rank's data-parallel index."""
    return list(range(len(LENGTHS)))[
        model.grids.dense.coordinate(dist.get_rank(), "dp") :: model.grids.dense.size("dp")
    ]


def _passes(model: Any, oracle: Oracle, numbers: list[int], packs: int) -> list[Tensor]:
    """Forward and backward over the sequences in so many micro-batches. Returns the last stage's logits (T, V / tp)."""
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from r1zero.model import build

    device = torch.device("npu", torch.npu.current_device())
    pieces = [piece.to(device) for piece in oracle.tokens.split(LENGTHS)]
    kept: list[Tensor] = []

    def step(data: Any, chunk: torch.nn.Module) -> tuple[Tensor, Callable[..., Any]]:
        group = next(data)
        hidden = project.forward(chunk, [pieces[number] for number in group], model.grids.dense.size("tp"), device)

        def loss(hidden: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
            logits = hidden @ build.output_weight(chunk).T
            kept.append(logits.detach().clone())
            return (
                _cross_entropy(logits, [pieces[number] for number in group]) / TARGETS,
                torch.tensor(0, dtype=torch.int),
                {},
            )

        return hidden, loss

    for chunk in model.chunks:
        chunk.zero_grad_buffer()
    model.optimizer.zero_grad()
    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=iter([numbers[i::packs] for i in range(packs)]),
        model=model.chunks,
        num_microbatches=packs,
        seq_length=1,
        micro_batch_size=1,
        forward_only=False,
        force_all_reduce=True,
    )
    return kept


def _cross_entropy(logits: Tensor, pieces: list[Tensor]) -> Tensor:
    """Sum over next tokens, the vocabulary cut over tensor ranks."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    tokens, ends = torch.cat(pieces), torch.tensor([len(piece) for piece in pieces]).cumsum(0) - 1
    rows = torch.ones(len(tokens), dtype=torch.bool).index_fill(0, ends, False).nonzero().squeeze(1).to(tokens.device)
    return vocab_parallel_cross_entropy(logits[rows].float(), tokens[rows + 1]).sum()


def _logit_error(model: Any, oracle: Oracle, numbers: list[int], packs: int, kept: list[Tensor]) -> float:
    if not kept:
        return 0.0
    theirs = torch.cat([oracle.logits().split(LENGTHS)[number] for i in range(packs) for number in numbers[i::packs]])
    width = theirs.shape[1] // model.grids.dense.size("tp")
    cut = theirs.narrow(1, width * model.grids.dense.coordinate(dist.get_rank(), "tp"), width)
    return float((torch.cat(kept).cpu() - cut).abs().max() / theirs.abs().max())
