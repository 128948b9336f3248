"""Weights from the trainer to the engines: the generic path, whole HF tensors through vLLM's own loader."""

import torch

from r1zero.layout import Grid, Layout
from r1zero.model import build, mapping, stream
from r1zero.model.families import Weight
from r1zero.model.shape import Shape
from r1zero.rollout.vllm_engine import Engine


class Sync:
    """Every rank of the world pushes together; what each sends or receives follows from the layout."""

    def __init__(self, layout: Layout, shape: Shape, dtype: str, expert_parallel: bool):
        self.layout, self.shape, self.dtype = layout, shape, build.DTYPES[dtype]
        self.receivers = engine_receivers(layout.rollout, shape, expert_parallel)

    def push(self, chunks: list[torch.nn.Module] | None, engine: Engine | None) -> None:
        """chunks: the trained model's on a rank that trains; engine: on a rank that generates."""
        local = mapping.local_tensors(chunks, self.shape, self.layout.train) if chunks else {}
        tensors = stream.stream(local, self.shape, self.layout.train, self.receivers, self.dtype)
        if engine:
            engine.reload(tensors)
        for _ in tensors:   # a rank that only sends; after reload nothing is left
            pass


def engine_receivers(rollout: Grid, shape: Shape, expert_parallel: bool) -> stream.Receivers:
    """Rollout ranks that want a weight: all of them; with expert parallelism an expert's owner in each replica.

    vLLM deals experts in contiguous blocks over (data, tensor) ranks, tensor fastest.
    """
    if not expert_parallel or not shape.moe:
        return lambda weight: rollout.ranks
    tp, dp = rollout.size("tp"), rollout.size("dp")
    each = shape.moe.experts // (tp * dp)

    def receivers(weight: Weight) -> tuple[int, ...]:
        if weight.expert is None:
            return rollout.ranks
        owner = weight.expert // each
        return tuple(rollout.at(tp=owner % tp, dp=owner // tp, replica=r) for r in range(rollout.size("replica")))
    return receivers
