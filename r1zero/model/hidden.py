"""Hidden states of the trainer's model, layer by layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.utils import unwrap_model
from torch import Tensor


@contextmanager
def recorded(chunks: list[torch.nn.Module], tp_group: dist.ProcessGroup) -> Iterator[dict[int, Tensor]]:
    """Record the hidden states of the next forward pass of one micro-batch, as (T with padding, H) in fp32.

    Every rank gets the layers of its pipeline stage. The dictionary has the embeddings at -1 and the output of layer i,
    counted in the whole model, at i.
    """
    model, found = unwrap_model(chunks[0]), {}

    def keep(layer: int) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            mine = (output[0] if isinstance(output, tuple) else output).detach().squeeze(1).float().contiguous()
            parts = [torch.empty_like(mine) for _ in range(tp_group.size())]
            if len(parts) > 1:  # with sequence parallelism each tensor rank has its own tokens
                dist.all_gather(parts, mine, group=tp_group)
            found[layer] = torch.cat(parts) if len(parts) > 1 else mine.clone()

        return hook

    modules = {layer.layer_number - 1: layer for layer in model.decoder.layers}
    if model.pre_process:
        modules[-1] = model.embedding
    handles = [module.register_forward_hook(keep(i)) for i, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
