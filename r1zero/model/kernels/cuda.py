"""torch's and megatron-core's fused functions. No GPU was available: only their signatures and what of them runs on a
CPU were tested."""

import torch
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from torch import Tensor

from r1zero.model.kernels import cpu
from r1zero.model.kernels.grouped import GroupedLinear, Products
from r1zero.model.kernels.interface import Kernels
from r1zero.model.packing import PackedSequences, attended_keys


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Rounds once, after the scale; the reference rounds before it as well."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, epsilon)


def swiglu(x: Tensor) -> Tensor:
    """megatron-core's function, which torch.compile fuses; it takes two or three axes."""
    return bias_swiglu_impl(x, None)


WIDTH = 256
"""Largest width of a head that FlashAttention takes; widths must be multiples of 8, and types of 16 bits."""


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, packed: PackedSequences) -> Tensor:
    """torch's FlashAttention over sequences end to end, where it takes the head's width and type; else plain torch.

    Its causal mask ends at the last query and the last key of a sequence. Values are padded to the width of the keys,
    because the function wants them equally wide.
    """
    width, narrower = q.shape[2], q.shape[2] - v.shape[2]
    if q.dtype not in (torch.bfloat16, torch.float16) or width > WIDTH or width % 8:
        return cpu.attend(q, k, v, scale, packed)
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and later

    padded = torch.nn.functional.pad(v, (0, narrower)) if narrower else v
    out = varlen_attn(
        q,
        attended_keys(k, packed),
        attended_keys(padded, packed),
        packed.cu_seqlens_q,
        packed.cu_seqlens_kv,
        packed.max_seqlen_q,
        packed.max_seqlen_kv,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)  # a tuple only if more results are asked for
    return out[..., : v.shape[2]].flatten(1)


def grouped_linear(rows: Tensor, weights: list[Tensor], counts: Tensor) -> Tensor:
    """torch's function takes the weights as one tensor, so they are copied, forward and backward; its own derivative
    would keep the copy of every layer until the backward pass."""
    return GroupedLinear.apply(PRODUCTS, rows, counts.to(rows.device), *weights)


def _multiply(rows: Tensor, matrices: list[Tensor], counts: Tensor) -> Tensor:
    if matrices[0].is_contiguous():
        stacked = torch.stack(matrices)
    else:  # transposed weights: a copy in their own order is the faster one
        stacked = torch.stack([matrix.t() for matrix in matrices]).transpose(1, 2)
    return torch.nn.functional.grouped_mm(rows, stacked, offs=_ends(counts))


def _sum_outer(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    return torch.nn.functional.grouped_mm(left.t(), right, offs=_ends(counts))


def _ends(counts: Tensor) -> Tensor:
    return counts.cumsum(0).to(torch.int32)


PRODUCTS = Products(_multiply, _sum_outer)

KERNELS = Kernels(
    rms_norm=rms_norm, swiglu=swiglu, attend=attend, grouped_linear=grouped_linear, shared_expert_overlap=True
)
