"""The compiled half of vllm-ascend: its operators, the sleeping allocator's functions, and the one Triton kernel that
it launches.

tests/twin/environment.py puts `from twin_ascend import *` in the place of vllm_ascend/vllm_ascend_C.*.so.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch_npu import operators
from torch_npu.npu.memory import init_module, python_create_and_map, python_unmap_and_release
from vllm.v1.worker import block_table

__all__ = ["init_module", "python_create_and_map", "python_unmap_and_release"]

operators.define("_C_ascend")


class _Kernel:
    """Launched with a grid, as Triton's are."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.function


def _slot_mapping(
    num_tokens: int,
    max_num_tokens: int,
    query_start_loc: Tensor,
    positions: Tensor,
    table: Tensor,
    stride: int,
    block_size: int,
    slots: Tensor,
    *,
    TOTAL_CP_WORLD_SIZE: int,
    PAD_ID: int,
    **_: int,
) -> None:
    """Where each token's key and value go (vllm/v1/worker/block_table.py); PAD_ID behind the last token."""
    if TOTAL_CP_WORLD_SIZE != 1:
        raise NotImplementedError("the twin knows no context parallelism")
    slots[num_tokens:max_num_tokens] = PAD_ID
    starts = query_start_loc.tolist()
    for request, (begin, end) in enumerate(pairwise(starts)):
        at = positions[begin:end]
        slots[begin:end] = table[request][at // block_size].long() * block_size + at % block_size


block_table._compute_slot_mapping_kernel = _Kernel(_slot_mapping)
