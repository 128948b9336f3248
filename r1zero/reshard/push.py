"""The compiled reshard in the place of the generic sync: the same call, the same result, no tensor gathered whole."""

import torch

from r1zero.layout import Layout
from r1zero.model import build, mapping
from r1zero.model.families import Weight
from r1zero.model.shape import Shape
from r1zero.reshard import run


class CompiledSync:
    """Every rank of the world pushes together; what each sends and receives was worked out when this was made."""

    def __init__(self, layout: Layout, shape: Shape, rank: int, dtype: str, expert_parallel: bool, device: torch.device, verify: bool):
        """verify: check every piece's bits against its sender's; costs one pass over them and one small collective a round."""
        self.layout, self.shape, self.verify = layout, shape, verify
        self.compiled = run.compile_reshard(layout, shape, rank, expert_parallel=expert_parallel, dtype=build.DTYPES[dtype], device=device)

    def push(self, chunks: list[torch.nn.Module] | None, engine) -> None:  # noqa: ANN001  the engine is an argument, not a dependency
        """chunks: the trained model's on a rank that trains; engine: on a rank that generates. Raises run.ChecksumError."""
        local = mapping.local_tensors(chunks, self.shape, self.layout.train) if chunks else {}

        def read(weight: Weight) -> torch.Tensor:
            return local[weight.name].tensor()

        tensors = run.stream(self.compiled, read, self.verify)
        if engine:
            engine.reload(tensors)
        for _ in tensors:   # a rank that only sends; after reload nothing is left
            pass
