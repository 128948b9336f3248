"""torch's and megatron-core's fused functions. No GPU was available: only their signatures and what of them runs on a
CPU were tested.

jit_fuser is megatron-core's name for torch.compile, which makes one kernel of a function's elementwise operations.
"""

from itertools import pairwise
from typing import Any

import torch
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl, weighted_bias_swiglu_impl
from megatron.core.jit import jit_fuser
from torch import Tensor

from r1zero.model.kernels import cpu
from r1zero.model.kernels.grouped import GroupedLinear, Products
from r1zero.model.kernels.interface import Kernels, extend_to_fp32
from r1zero.model.packing import PackedSequences, attended_keys


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Rounds once, after the scale; the reference rounds before it as well."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, epsilon)


def swiglu(x: Tensor) -> Tensor:
    """megatron-core's function, which torch.compile fuses; it takes two or three axes."""
    return bias_swiglu_impl(x, None)


def weighted_swiglu(x: Tensor, weights: Tensor) -> Tensor:
    """megatron-core's function, which torch.compile fuses with the product and the rounding."""
    return weighted_bias_swiglu_impl(x, None, weights)


@jit_fuser
def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """megatron-core's own function is a chain of elementwise operations, each with a pass over memory."""
    (first, second), (cosine, other_cosine), (sine, other_sine) = (t.chunk(2, -1) for t in (x, cosines, sines))
    return torch.cat((first * cosine - second * sine, second * other_cosine + first * other_sine), -1)


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
    """torch's function takes the weights as one tensor. Where that is a copy, its own derivative would keep the copy of
    every layer until the backward pass."""
    return GroupedLinear.apply(PRODUCTS, rows, counts.to(rows.device), *weights)


def _multiply(rows: Tensor, matrices: list[Tensor], counts: Tensor) -> Tensor:
    return torch.nn.functional.grouped_mm(rows, _stack(matrices), offs=_ends(counts))


def _sum_outer(left: Tensor, right: Tensor, counts: Tensor) -> Tensor:
    return torch.nn.functional.grouped_mm(left.t(), right, offs=_ends(counts))


def _stack(matrices: list[Tensor]) -> Tensor:
    """Returns X matrices (a, b), all with the same strides, as one tensor (X, a, b).

    Without a copy if they lie one after another in the same memory, with equal distances, as a trained model's do
    (layers.GroupedExperts).
    """
    first, size = matrices[0], matrices[0].element_size()
    step, *others = {after.data_ptr() - before.data_ptr() for before, after in pairwise(matrices)} or {size}
    if step > 0 and not others and len({matrix.untyped_storage().data_ptr() for matrix in matrices}) == 1:
        return first.as_strided((len(matrices), *first.shape), (step // size, *first.stride()))
    return _copy(matrices)


def _copy(matrices: list[Tensor]) -> Tensor:
    if matrices[0].is_contiguous():
        return torch.stack(matrices)
    # Transposed weights: a copy in their own order is the faster one.
    return torch.stack([matrix.t() for matrix in matrices]).transpose(1, 2)


def _ends(counts: Tensor) -> Tensor:
    return counts.cumsum(0).to(torch.int32)


PRODUCTS = Products(_multiply, _sum_outer)


class _ToRows(torch.autograd.Function):
    """`apply(tokens (T, H), token of each row (R,), rows of each token (T, K))` gives (R, H)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, token_of_row: Tensor, rows_of_token: Tensor) -> Tensor:
        ctx.save_for_backward(rows_of_token)
        return tokens.index_select(0, token_of_row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sum_rows(grad, *ctx.saved_tensors), None, None


class _FromRows(torch.autograd.Function):
    """`apply(rows (R, H), token of each row (R,), rows of each token (T, K))` gives (T, H), sums of K rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token_of_row: Tensor, rows_of_token: Tensor) -> Tensor:
        ctx.save_for_backward(token_of_row)
        return _sum_rows(rows, rows_of_token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, *ctx.saved_tensors), None, None


def _sum_rows(rows: Tensor, rows_of_token: Tensor) -> Tensor:
    """One kernel, which adds in fp32 and always in the same order. Its own derivative sorts, and is not used."""
    return torch.nn.functional.embedding_bag(rows_of_token, rows, mode="sum")


def permute(
    tokens: Tensor,
    routing_map: Tensor,
    probs: Tensor | None = None,
    num_out_tokens: int | None = None,
    fused: bool = False,
    drop_and_pad: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Each row of the map must have the same number of experts, which is so without capacity limits.

    megatron-core's own function scatters the gradient, and its unpermute the result, with atomic additions in the
    tokens' type.
    """
    of_expert = routing_map.bool().T.contiguous()
    numbers = torch.arange(len(tokens), device=tokens.device).expand(of_expert.shape)
    token_of_row = numbers.masked_select(of_expert)
    rows_of_token = token_of_row.argsort(stable=True).view(len(tokens), -1)
    row_probs = None if probs is None else probs.T.masked_select(of_expert)
    return _ToRows.apply(tokens, token_of_row, rows_of_token), row_probs, rows_of_token


def unpermute(
    permuted_tokens: Tensor, sorted_indices: Tensor, restore_shape: torch.Size, **others: Tensor | bool | None
) -> Tensor:
    """The sum of each token's rows. sorted_indices: what `permute` returned last."""
    order = sorted_indices.flatten()
    token_of_row = torch.empty_like(order)
    token_of_row[order] = torch.arange(len(order), device=order.device) // sorted_indices.shape[1]
    return _FromRows.apply(permuted_tokens, token_of_row, sorted_indices)


@extend_to_fp32
def add_weight_gradient(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
    """cuBLAS multiplies and adds to fp32 in one operation, as apex and transformer-engine do."""
    torch.addmm(total, gradient.t(), inputs, out_dtype=total.dtype, out=total)


KERNELS = Kernels(
    rms_norm=rms_norm,
    swiglu=swiglu,
    weighted_swiglu=weighted_swiglu,
    attend=attend,
    rotate=rotate,
    grouped_linear=grouped_linear,
    permute=permute,
    unpermute=unpermute,
    accumulate=add_weight_gradient,
    shared_expert_overlap=True,
)
