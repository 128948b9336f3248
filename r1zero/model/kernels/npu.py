"""torch_npu's fused operators, whose derivatives torch_npu registers (classes Npu...Backward0 of libtorch_npu.so).

torch.ops.npu exists once torch_npu is imported (distributed/device.py). Limits are those that the operators' pages in
Ascend's op-plugin repository state (docs/zh/custom_APIs/torch_npu) for Atlas A2 and A3.
"""

from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from r1zero.model.kernels.grouped import GroupedLinear, Products
from r1zero.model.kernels.interface import Kernels, extend_to_fp32
from r1zero.model.packing import PackedSequences, attended_keys


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Rounds once, after the scale; the reference rounds before it as well."""
    return torch.ops.npu.npu_rms_norm(x, weight, epsilon)[0]


def swiglu(x: Tensor) -> Tensor:
    return torch.ops.npu.npu_swiglu(x, -1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """The operator takes values in [-1, 1] as cosines and sines, and a width that is even and below 896."""
    return torch.ops.npu.npu_rotary_mul(x, cosines, sines, "half")


SEQUENCES = 1024
"""Number of sequences that npu_fusion_attention takes in a call."""


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, packed: PackedSequences) -> Tensor:
    """Layout TND has sequences end to end: there is no padding. The operator computes with the lengths on the host."""
    lengths, attended = (
        [numbers[first : first + SEQUENCES] for first in range(0, len(numbers), SEQUENCES)]
        for numbers in (list(packed.lengths), packed.attended)
    )
    queries = q.split([sum(part) for part in lengths])
    keys, values = (attended_keys(x, packed).split([sum(part) for part in attended]) for x in (k, v))
    parts = zip(queries, keys, values, map(_ends, lengths), map(_ends, attended), strict=True)
    outs = [_attend(*part, scale) for part in parts]
    return (torch.cat(outs) if len(outs) > 1 else outs[0]).flatten(1)


def _ends(lengths: list[int]) -> list[int]:
    return list(accumulate(lengths))


def _attend(q: Tensor, k: Tensor, v: Tensor, ends_q: list[int], ends_k: list[int], scale: float) -> Tensor:
    """sparse_mode 3: the causal mask ends at the last query and the last key of a sequence."""
    return torch.ops.npu.npu_fusion_attention(
        q,
        k,
        v,
        q.shape[1],
        "TND",
        atten_mask=_compressed_mask(q.device),
        scale=scale,
        actual_seq_qlen=ends_q,
        actual_seq_kvlen=ends_k,
        sparse_mode=3,
    )[0]


@cache
def _compressed_mask(device: torch.device) -> Tensor:
    """The operator's form of a causal mask for sequences of any length; true where a key is hidden."""
    return torch.ones((2048, 2048), dtype=torch.bool, device=device).triu(1)


MATRICES = 128
"""Number of matrices that npu_grouped_matmul takes in a list."""


def grouped_linear(rows: Tensor, weights: list[Tensor], counts: Tensor) -> Tensor:
    """torch_npu has no derivative of npu_grouped_matmul; this one has."""
    return GroupedLinear.apply(PRODUCTS, rows, counts.to(rows.device), *weights)


def _multiply(rows: Tensor, matrices: list[Tensor], counts: Tensor) -> Tensor:
    """The operator takes a list of matrices in 16-bit types only."""
    if rows.dtype == torch.float32 or len(matrices) > MATRICES:
        matrices = [torch.stack(matrices)]
    options = dict(group_list=counts, group_list_type=1, group_type=0, split_item=2)
    return torch.ops.npu.npu_grouped_matmul([rows], matrices, **options)[0]


def _sum_outer(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    """The first matrix must be a transposed tensor."""
    options = dict(group_list=counts, group_list_type=1, group_type=2, split_item=3)
    return torch.ops.npu.npu_grouped_matmul([left.t()], [right], **options)[0]


PRODUCTS = Products(_multiply, _sum_outer)


def permute(
    tokens: Tensor,
    routing_map: Tensor,
    probs: Tensor | None = None,
    num_out_tokens: int | None = None,
    fused: bool = False,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Each row of the map must have the same number of experts, which is so without capacity limits."""
    operator = torch.ops.npu.npu_moe_token_permute_with_routing_map
    rows, row_probs, order = operator(tokens, routing_map, probs=probs, num_out_tokens=num_out_tokens)
    return rows, None if probs is None else row_probs, order


def unpermute(
    permuted_tokens: Tensor, sorted_indices: Tensor, restore_shape: torch.Size, **others: Tensor | bool | None
) -> Tensor:
    """The sum of each token's rows, by gathering; megatron-core's own scatters with an index for each number."""
    operator = torch.ops.npu.npu_moe_token_unpermute_with_routing_map
    return operator(permuted_tokens, sorted_indices, list(restore_shape))


@extend_to_fp32
def add_weight_gradient(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
    """ATB's operator. MindSpeed calls it for the same purpose, through C++ that it compiles at first use."""
    torch.ops.atb._npu_matmul_add_fp32(gradient, inputs, total)


KERNELS = Kernels(
    rms_norm=rms_norm,
    swiglu=swiglu,
    attend=attend,
    rotate=rotate,
    grouped_linear=grouped_linear,
    permute=permute,
    unpermute=unpermute,
    accumulate=add_weight_gradient,
    shared_expert_overlap=True,
)
