"""Packed sequences, and the padded views of them in which attention consists of two matrix products.

A sequence of the pack may continue the first tokens of an earlier one, as further responses continue the prompt of the
first response. Only attention and rotary positions depend on that: such a sequence has its own tokens in the pack, and
in the padded view the shared tokens before them.

Shapes: T tokens in total, N sequences, L tokens in the longest, S slots in the padded views. Indices and mask are
computed once per micro-batch and shared by all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from typing import NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.parallel_state import get_tensor_model_parallel_rank
from torch import Tensor

from r1zero.model.shape import DENSE_TOKENS

SIMILAR = 1.25
"""If tokens are shared, sequences of similar length have a padded view of their own, in which the longest is at most
this many times as long as the shortest. Measured with the miniature on one core: values from 1.15 to 1.5 are equally
fast, and attention over a single view takes up to twice as long."""


class View(NamedTuple):
    """The padded view of some sequences: (rows, longest) slots."""

    rows: int
    longest: int


@dataclass
class PackedSequences(PackedSeqParams):
    """The description of packed sequences that megatron-core passes to rotary positions and attention.

    `cu_seqlens_q` has the tokens of each sequence in the pack, and `cu_seqlens_kv` those that it attends to: a kernel
    with a causal mask that is aligned at the end can use them as they are. `cu_seqlens_q_padded`, which only the rotary
    code reads, describes them as a single sequence, because PackedRotary already returns the frequencies for each
    token's own position.
    """

    lengths: tuple[int, ...] = ()
    """Numbers of tokens in the pack of the sequences; that of the last one includes the padding."""
    shared: tuple[int, ...] = ()
    """Number of tokens that each sequence continues; they are the first ones of the nearest sequence before it that
    continues none."""
    positions_T: Tensor = field(kw_only=True)
    frequencies: Tensor | None = None
    """(T, 1, 1, D), set by the first layer that needs it."""
    experts_TLK: Tensor | None = None
    """int16: the experts to use for each token in each of the model's L layers with experts, or -1 where the router is
    to choose; None if it is to choose for all tokens."""
    ties_T: Tensor | None = None
    """bool: the tokens for which rounding may have chosen an expert in a layer of this stage, on this tensor rank. The
    routers mark them if it is set."""

    def own_rows(self, count: int) -> slice:
        """Returns the `count` rows of this tensor rank: all, or with sequence parallelism a part."""
        first = get_tensor_model_parallel_rank() * count if count < len(self.positions_T) else 0
        return slice(first, first + count)

    @cached_property
    def attended(self) -> list[int]:
        """Number of tokens of each sequence with those that it continues."""
        return [own + shared for own, shared in zip(self.lengths, self.shared, strict=True)]

    @cached_property
    def longest(self) -> int:
        """Number of tokens in the longest sequence, with those that it continues."""
        return max(self.attended)

    @cached_property
    def views(self) -> list[View]:
        """The padded views of the sequences of `order`, one after the other."""
        if not any(self.shared):
            return [View(len(self.lengths), self.longest)]
        found: list[View] = []
        shortest = 0
        for n in self.order:
            if not found or self.attended[n] > SIMILAR * shortest:
                found.append(View(0, 0))
                shortest = self.attended[n]
            found[-1] = View(found[-1].rows + 1, self.attended[n])
        return found

    @cached_property
    def order(self) -> list[int]:
        """The sequences in the order of their rows in `views`."""
        numbers = range(len(self.lengths))
        return sorted(numbers, key=self.attended.__getitem__) if any(self.shared) else list(numbers)

    @cached_property
    def slots(self) -> "Slots | None":
        """Where the tokens are in the padded views; None if the tokens are a padded view without padding."""
        if len(set(self.lengths)) == 1 and not any(self.shared):
            return None
        return self._slots(self.order, [view.longest for view in self.views for _ in range(view.rows)])

    @cached_property
    def key_slots(self) -> "Slots | None":
        """Where the tokens are if each sequence has those that it continues before its own, without padding; None if no
        sequence continues another."""
        return self._slots(list(range(len(self.lengths))), self.attended) if any(self.shared) else None

    def _slots(self, order_N: list[int], widths_N: list[int]) -> "Slots":
        """order_N: the sequences in the order of their slots. widths_N: the number of slots of each, in that order."""
        lengths, shared, order, widths = (torch.tensor(x) for x in (self.lengths, self.shared, order_N, widths_N))
        begins = torch.zeros_like(lengths).index_copy(0, order, widths.cumsum(0) - widths)  # first slot of a sequence
        starts = lengths.cumsum(0) - lengths
        origins = starts.masked_fill(shared > 0, 0).cummax(0).values  # of the sequence whose tokens are continued
        each = order.repeat_interleave(widths)  # the sequence of each slot
        at = torch.arange(int(widths.sum())) - begins[each]
        at = at.minimum((lengths + shared - 1)[each])  # the padding repeats the last token, and no token sees it
        is_shared = at < shared[each]
        tokens_S = torch.where(is_shared, origins[each] + at, starts[each] - shared[each] + at)
        # A sequence's own tokens follow those that it continues.
        slots_T = torch.arange(int(lengths.sum())) + (begins + shared - starts).repeat_interleave(lengths)
        device = self.positions_T.device
        repeats = is_shared.nonzero()[:, 0].to(device) if any(self.shared) else None
        return Slots(tokens_S.to(device), slots_T.to(device), repeats)

    @cached_property
    def mask_LL(self) -> Tensor:
        """Causal mask to add to the scores of up to DENSE_TOKENS tokens: -inf above the diagonal, fp32."""
        longest = min(self.longest, DENSE_TOKENS)
        return torch.full((longest, longest), float("-inf"), device=self.positions_T.device).triu(1)


WIDE_TOKENS = {torch.float16: inf, torch.bfloat16: 192}
"""On a CPU, the longest sequences for which torch's attention takes less time in fp32 than in this type. Its backward
pass in 16 bits takes two to four times as long as in fp32 for short sequences; processors that multiply bfloat16 are
faster for long ones."""


class Slots(NamedTuple):
    """The positions of tokens in a layout that has slots for them, int64."""

    tokens_S: Tensor
    """The token in each slot."""
    slots_T: Tensor
    """The slot of each token that stands for itself; the others repeat a token as shared or as padding."""
    repeats: Tensor | None
    """The slots that repeat a shared token; None if there are none."""


def pack(
    lengths: list[int],
    multiple: int,
    device: torch.device,
    shared: Sequence[int] = (),
    experts_TLK: Tensor | None = None,
) -> PackedSequences:
    """Describe sequences of `lengths`, padded at the end to a multiple of `multiple`, the tensor-parallel degree.

    shared: number of tokens that each sequence continues; the default is none. experts_TLK: the experts to use for the
    tokens before the padding, for which the routers choose. The padding lengthens the last sequence,
    whose own tokens do not see it because attention is causal. As a sequence of its own it would cost as much attention
    as the longest one.
    """
    every = (*lengths[:-1], lengths[-1] + -sum(lengths) % multiple)
    before = tuple(shared) or (0,) * len(every)
    sizes, continued = torch.tensor(every), torch.tensor(before)
    starts, seen = (torch.cat([torch.zeros(1, dtype=torch.long), n.cumsum(0)]) for n in (sizes, sizes + continued))
    positions = torch.arange(int(starts[-1])) - (starts[:-1] - continued).repeat_interleave(sizes)
    whole = torch.tensor([0, int(starts[-1])], dtype=torch.int32)
    if experts_TLK is not None:
        padding = (0, 0, 0, 0, 0, len(positions) - len(experts_TLK))
        experts_TLK = torch.nn.functional.pad(experts_TLK, padding, value=-1).to(device)
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=starts.to(device=device, dtype=torch.int32),
        cu_seqlens_kv=seen.to(device=device, dtype=torch.int32),
        cu_seqlens_q_padded=whole,
        cu_seqlens_kv_padded=whole,
        max_seqlen_q=max(every),
        max_seqlen_kv=int((sizes + continued).max()),
        lengths=every,
        shared=before,
        positions_T=positions.to(device),
        experts_TLK=experts_TLK,
    )


class _ToSlots(torch.autograd.Function):
    """(T, ...) to (S, ...). The gradient is a gather, to which only those of the repeated tokens are added."""

    @staticmethod
    def forward(ctx, packed, slots):
        ctx.save_for_backward(*slots)
        return packed.index_select(0, slots.tokens_S)

    @staticmethod
    def backward(ctx, grad):
        tokens_S, slots_T, repeats = ctx.saved_tensors
        own = grad.index_select(0, slots_T)
        if repeats is None:
            return own, None
        wide = own.to(torch.promote_types(own.dtype, torch.float32))  # the sum is over all responses to a prompt
        wide.index_add_(0, tokens_S[repeats], grad.index_select(0, repeats).to(wide.dtype))
        return wide.to(own.dtype), None


class _FromSlots(torch.autograd.Function):
    """(S, ...) to (T, ...). The slots are distinct, so the gradient is a copy instead of a sum."""

    @staticmethod
    def forward(ctx, padded, slots):
        ctx.save_for_backward(slots)
        ctx.size = padded.shape[0]
        return padded.index_select(0, slots)

    @staticmethod
    def backward(ctx, grad):
        slots = ctx.saved_tensors[0]
        return grad.new_zeros((ctx.size, *grad.shape[1:])).index_copy_(0, slots, grad), None


def attended_keys(x: Tensor, packed: PackedSequences) -> Tensor:
    """Keys or values (T, ...) to (S, ...): each sequence's own after those that it continues, as `cu_seqlens_kv` counts
    them. Gradients of repeated tokens are added in fp32."""
    return x if packed.key_slots is None else _ToSlots.apply(x, packed.key_slots)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, packed: PackedSequences) -> Tensor:
    """Causal attention within each sequence. q (T, h, d), k (T, g, d), v (T, g, e) to (T, h * e). g must divide h.

    A token attends to the tokens that its sequence continues, and to the earlier ones of its own sequence.
    """
    slots, sizes = packed.slots, [view.rows * view.longest for view in packed.views]

    def padded(x: Tensor) -> list[Tensor]:  # (T, h, d) -> (N, h, L, d) for each view
        rows = x if slots is None else _ToSlots.apply(x, slots)
        parts = rows.split(sizes) if len(sizes) > 1 else [rows]
        return [part.view(*view, *x.shape[1:]).transpose(1, 2) for part, view in zip(parts, packed.views, strict=True)]

    out = [
        _attend_padded(*view, scale, packed).transpose(1, 2).reshape(size, -1)
        for view, size in zip(zip(padded(q), padded(k), padded(v), strict=True), sizes, strict=True)
    ]
    rows = torch.cat(out) if len(out) > 1 else out[0]
    return rows if slots is None else _FromSlots.apply(rows, slots.slots_T)


def _attend_padded(q: Tensor, k: Tensor, v: Tensor, scale: float, packed: PackedSequences) -> Tensor:
    """(N, h, L, d), (N, g, L, d), (N, g, L, e) to (N, h, L, e). L: tokens in the longest sequence of the view."""
    length = q.shape[2]
    if length <= DENSE_TOKENS and q.device.type == "cpu":
        return _products(q, k, v, scale, packed.mask_LL[:length, :length])
    dtype = q.dtype
    if q.device.type == "cpu" and length <= WIDE_TOKENS.get(dtype, 0.0):
        q, k, v = q.float(), k.float(), v.float()
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.to(dtype)


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
