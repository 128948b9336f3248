"""Packed sequences, and the padded view of them in which attention consists of two matrix products.

Shapes: T tokens in total, N sequences, L tokens in the longest. Indices and mask are computed once per micro-batch and
shared by all layers.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from r1zero.model.shape import DENSE_TOKENS


@dataclass
class PackedSequences(PackedSeqParams):
    """The description of packed sequences that megatron-core passes to rotary positions and attention.

    `cu_seqlens_q` has the true sequences. `cu_seqlens_q_padded`, which only the rotary code reads, describes them as a
    single sequence, because PackedRotary already returns the frequencies for each token's own position.
    """

    lengths: tuple[int, ...] = ()
    """Lengths of the sequences; that of the last one includes the padding."""
    positions_T: Tensor = field(kw_only=True)
    frequencies: Tensor | None = None
    """(T, 1, 1, D), set by the first layer that needs it."""

    @property
    def longest(self) -> int:
        """Number of tokens in the longest sequence."""
        return max(self.lengths)

    @cached_property
    def slots_T(self) -> Tensor | None:
        """Index of each token in the padded view (N * L); None if no padding is needed."""
        if len(set(self.lengths)) == 1:
            return None
        lengths = torch.tensor(self.lengths, device=self.positions_T.device)
        return (
            self.positions_T
            + torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths) * self.longest
        )

    @cached_property
    def mask_LL(self) -> Tensor:
        """Causal mask to add to the scores: -inf above the diagonal, fp32."""
        return torch.full((self.longest, self.longest), float("-inf"), device=self.positions_T.device).triu(1)


def pack(lengths: list[int], multiple: int, device: torch.device) -> PackedSequences:
    """Describe sequences of `lengths`, padded at the end to a multiple of `multiple`, the tensor-parallel degree.

    The padding lengthens the last sequence, whose own tokens do not see it because attention is causal. As a sequence
    of its own it would cost as much attention as the longest one.
    """
    every = (*lengths[:-1], lengths[-1] + -sum(lengths) % multiple)
    sizes = torch.tensor(every)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
    positions = torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(sizes)
    cu_seqlens = starts.to(device=device, dtype=torch.int32)
    whole = torch.tensor([0, int(starts[-1])], dtype=torch.int32)
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        cu_seqlens_q_padded=whole,
        cu_seqlens_kv_padded=whole,
        max_seqlen_q=max(every),
        max_seqlen_kv=max(every),
        lengths=every,
        positions_T=positions.to(device),
    )


class _ToSlots(torch.autograd.Function):
    """(T, ...) to (N * L, ...), zero elsewhere. The gradient is a gather; that of torch's index_copy would clone."""

    @staticmethod
    def forward(ctx, packed, slots, size):
        ctx.save_for_backward(slots)
        return packed.new_zeros((size, *packed.shape[1:])).index_copy_(0, slots, packed)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _FromSlots(torch.autograd.Function):
    """(N * L, ...) to (T, ...). The slots are distinct, so the gradient is a copy instead of a sum."""

    @staticmethod
    def forward(ctx, padded, slots):
        ctx.save_for_backward(slots)
        ctx.size = padded.shape[0]
        return padded.index_select(0, slots)

    @staticmethod
    def backward(ctx, grad):
        slots = ctx.saved_tensors[0]
        return grad.new_zeros((ctx.size, *grad.shape[1:])).index_copy_(0, slots, grad), None


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, packed: PackedSequences) -> Tensor:
    """Causal attention within each sequence. q (T, h, d), k (T, g, d), v (T, g, e) to (T, h * e). g must divide h."""
    tokens, heads, width = q.shape[0], q.shape[1], v.shape[2]
    count, longest = len(packed.lengths), packed.longest

    def padded(x: Tensor) -> Tensor:  # (T, h, d) -> (N, h, L, d)
        rows = x if packed.slots_T is None else _ToSlots.apply(x, packed.slots_T, count * longest)
        return rows.view(count, longest, *x.shape[1:]).transpose(1, 2)

    q, k, v = padded(q), padded(k), padded(v)
    if longest <= DENSE_TOKENS and q.device.type == "cpu":
        out = _products(q, k, v, scale, packed.mask_LL)
    else:
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    rows = out.transpose(1, 2).reshape(count * longest, heads * width)
    return rows.view(tokens, -1) if packed.slots_T is None else _FromSlots.apply(rows, packed.slots_T)


def _products(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor) -> Tensor:
    """(N, h, L, d), (N, g, L, d), (N, g, L, e) to (N, h, L, e). The h / g queries of a key head share one product.

    Scores are computed in fp32 whatever the type of the activations: Qwen2's key biases make them so large that
    bfloat16 would round them to integers.
    """
    n, h, length, d = q.shape
    g, r = k.shape[1], h // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, keys = q.to(wide).reshape(n * g, r * length, d), k.to(wide).reshape(n * g, length, d)
    weights = (
        torch.baddbmm(mask.to(wide).repeat(r, 1), queries, keys.transpose(1, 2), alpha=scale).softmax(-1).to(v.dtype)
    )
    return (weights @ v.reshape(n * g, length, -1)).view(n, h, length, -1)
