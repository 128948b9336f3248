"""The trained model as a Hugging Face folder that plain transformers and vLLM load; all ranks of its grid write at once."""

from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from r1zero.config import UserError
from r1zero.layout import MegatronGrids
from r1zero.model import hf_files, mapping, stream
from r1zero.model.families import Weight
from r1zero.model.shape import Shape

FILE_BYTES = 4 << 30


def export_hf(chunks: list[torch.nn.Module], shape: Shape, grids: MegatronGrids, dtype: torch.dtype, source: Path, out: Path) -> None:
    """Write `out`, with config and tokenizer files of `source`. Collective over the model's grid.

    Layers are dealt over the ranks, so that each holds one tensor beyond its own and writes its share of the files. Raises
    UserError where `out` exists; what is half-written lies in `out`.partial and is started afresh.
    """
    if out.exists():
        raise UserError(f"{out}: exists already; name a new folder")
    ranks, partial = grids.dense.ranks, out.with_name(f"{out.name}.partial")
    group = parallel_state.get_intra_distributed_optimizer_instance_group()
    if dist.get_rank() == ranks[0]:
        hf_files.start(partial)
    dist.barrier(group)

    def writer(weight: Weight) -> tuple[int]:
        return (ranks[0 if weight.layer is None else weight.layer * len(ranks) // shape.layers],)

    local = mapping.local_tensors(chunks, shape, grids)
    placed = hf_files.write_part(partial, dist.get_rank(), stream.stream(local, shape, grids, writer, dtype), FILE_BYTES)
    everywhere: list[dict[str, str]] = [{}] * len(ranks)
    dist.all_gather_object(everywhere, placed, group)
    if dist.get_rank() == ranks[0]:
        hf_files.finish(partial, out, {name: file for part in everywhere for name, file in part.items()}, source, dtype)
    dist.barrier(group)
