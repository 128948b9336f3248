"""Weight sync: sends the trained weights to the engines and stores them there.

The transfers are computed once, from both layouts. Tensors that the engine keeps as they were loaded are written in
place as they arrive. The others, which its kernels need packed, go through the engine's own loader.
"""

from functools import partial

import torch

from r1zero.config import Config
from r1zero.distributed.layout import Layout
from r1zero.model import build, mapping
from r1zero.model.shape import Shape
from r1zero.model.weights import Weight
from r1zero.rollout import loader_trace
from r1zero.rollout.engine import Engine
from r1zero.weight_sync import transfer
from r1zero.weight_sync.routes import Routes, Span, axis

MIB = 1 << 20


class Sync:
    """Sends the trained weights to the engines. Construction computes what this rank sends and receives."""

    def __init__(self, cfg: Config, layout: Layout, shape: Shape, rank: int, device: torch.device):
        self.layout, self.shape, self.every = layout, shape, cfg.sync.verify_every
        self.compiled = transfer.compile_sync(
            Routes(layout, shape, cfg.layout.rollout.enable_expert_parallel, device.type),
            rank,
            dtype=build.DTYPES[cfg.run.dtype],
            device=device,
            staging_bytes=cfg.sync.staging_mib * MIB,
        )
        self.done = 0
        self.local: dict[str, mapping.Local] | None = None
        self.writers: dict[str, transfer.Write] | None = None

    def push(self, chunks: list[torch.nn.Module] | None, engine: Engine | None) -> None:
        """Transfer all weights. Collective over the world.

        chunks: the trained model, on a rank that trains. engine: on a rank that generates. Raises
        transfer.ChecksumError.
        """
        if self.local is None:
            self.local = mapping.local_tensors(chunks, self.shape, self.layout.train) if chunks else {}
        if self.writers is None:
            self.writers = self._writers(engine) if engine else {}
        verify = self.every > 0 and self.done % self.every == 0
        local = self.local
        tensors = transfer.stream(self.compiled, lambda weight: local[weight.name].tensor(), self.writers, verify)
        if engine:
            engine.reload(tensors)
        for _ in tensors:  # for a rank that only sends; after `reload` nothing is left
            pass
        self.done += 1

    def _writers(self, engine: Engine) -> dict[str, transfer.Write]:
        """Returns functions that write in place. Raises RuntimeError if the engine keeps other rows of a weight than
        those that the sync brings."""
        weights = {self.compiled.routes.weights[number]: span for number, span in self.compiled.wanted.items()}
        known = engine.write_targets([(weight.name, weight.shape) for weight in weights])
        for weight, span in weights.items():
            if weight.name in known:
                _check(weight, span, known[weight.name])
        return {name: partial(_write, found) for name, found in known.items()}


def _write(found: tuple[loader_trace.WriteTarget, ...], weight: Weight, span: Span, tensor: torch.Tensor) -> None:
    loader_trace.write(found, axis(weight), span.first, tensor)


def _check(weight: Weight, span: Span, found: tuple[loader_trace.WriteTarget, ...]) -> None:
    along = axis(weight)
    rows = {row for corner, target in found for row in range(corner[along], corner[along] + target.shape[along])}
    full = all(target.shape[i] == n for _, target in found for i, n in enumerate(weight.shape) if i != along)
    if rows != set(range(span.first, span.end)) or not full:
        raise RuntimeError(
            f"vLLM keeps {len(rows)} units of axis {along} of {weight.name} on this rank, from {min(rows)}; "
            f"the sync brings {span.first} to {span.end - 1}: weight_sync.routes does not know this layout"
        )
