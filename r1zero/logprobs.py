"""Logprobs of chosen tokens, and the entropy, from hidden states and an output layer whose vocabulary is split over
tensor-parallel ranks.

Logits are computed for ROWS target tokens at a time. If those of the whole pack take more than KEPT_BYTES, they are
computed again in the backward pass. Rows of the pack that predict no target are not computed at all.

What is computed from these logits passes over them in fp32 more than ten times each way. If every pass goes through
memory, this takes longer than the matrix products. On CUDA, torch.compile makes a few kernels of it. A CPU computes
them for some ids at a time, which stay in the cache; the sums over ids are put together like those of ranks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

ROWS = 1024
"""Number of target tokens whose logits are computed together."""
KEPT_BYTES = 32 << 20
"""Logits of at most this size are kept for the backward pass."""
BLOCK_BYTES = 8 << 20
"""Size in fp32 of the logits that a CPU computes at a time."""


class TokenStats(NamedTuple):
    """Logprob and entropy of R target tokens. float32."""

    logprobs_R: Tensor
    """log softmax(logits / temperature) at the targets, with gradient."""
    entropy_R: Tensor
    """Entropy of the same distribution in nats, with gradient. The gradient is computed only if it is used."""


@dataclass(frozen=True)
class OutputLayer:
    """This rank's part of the output layer, and how its logits become a distribution.

    H: width of the hidden states. V: number of ids in the rank's part of the vocabulary.
    """

    weight_VH: Tensor
    forbidden_V: Tensor
    """Ids that stand for no token and are masked before the softmax, bool."""
    temperature: float
    group: dist.ProcessGroup | None
    """The tensor-parallel ranks, in the order of their parts of the vocabulary; None if the vocabulary is not split."""
    reports: bool = False
    """Give autograd a gradient of zeros for a weight whose gradient is added to its `main_grad`. If megatron-core
    reduces gradients during the backward pass, it learns from it that the weight is ready."""
    accumulate: Callable[[Tensor, Tensor, Tensor], None] | None = None
    """(input, gradient of the output, total): adds the gradient of some rows of the weight to `total`, which are those
    rows of its `main_grad`. Without it the product is made first, in the type of the hidden states."""

    def owned(self, targets_R: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the columns of the targets, and whether this rank owns each; columns of others are meaningless."""
        columns_R = targets_R - len(self.weight_VH) * (dist.get_rank(self.group) if self.group else 0)
        owned_R = (columns_R >= 0) & (columns_R < len(self.weight_VH))
        return columns_R.clamp(0, len(self.weight_VH) - 1), owned_R

    def all_reduce(self, tensor: Tensor, operation: Any) -> None:
        """Reduce over the tensor-parallel ranks, in place."""
        if self.group is not None and self.group.size() > 1:
            dist.all_reduce(tensor, operation, group=self.group)


def token_stats(hidden_TH: Tensor, rows_R: Tensor, targets_R: Tensor, layer: OutputLayer) -> TokenStats:
    """Returns logprob and entropy for R target tokens, in fp32 whatever the type of the hidden states.

    rows_R: the row of the hidden states that predicts each target; a row may occur several times. targets_R: token ids.
    Collective over `layer.group`. The gradient of the hidden states covers only this rank's part of the vocabulary, and
    that of the weight is added to its `main_grad` if it has one, as megatron-core does.
    """
    return TokenStats(*_TokenStats.apply(hidden_TH, layer.weight_VH, rows_R, targets_R, layer))


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, rows_R: Tensor, targets_R: Tensor, layer: OutputLayer):
        at_R, owned_R = layer.owned(targets_R)
        keep = any(ctx.needs_input_grad) and len(rows_R) * len(weight_VH) * weight_VH.element_size() <= KEPT_BYTES
        kept, found, sums = [], [], _as_on(hidden_TH.device.type, _sums)
        for rows, parts in _chunks(rows_R, layer):
            hidden, of_parts = hidden_TH[rows_R[rows]], []
            for ids in parts:
                logits = hidden @ weight_VH[ids].T
                kept += [logits] if keep else []
                of_parts.append(sums(_Block.of(layer, ids, logits, at_R[rows], owned_R[rows])))
                del logits  # unless they are kept, free them before the next are allocated
            found.append(_together(torch.stack(of_parts)))
        own_R, z_R, weighted_R, chosen_R = torch.cat(found, 1)
        highest_R = own_R.clone()
        layer.all_reduce(highest_R, dist.ReduceOp.MAX)
        total = torch.stack([*_shifted(z_R, weighted_R, own_R - highest_R), chosen_R])
        layer.all_reduce(total, dist.ReduceOp.SUM)
        z_R, weighted_R, chosen_R = total
        log_z_R = z_R.log()
        entropy_R = log_z_R - weighted_R / z_R
        ctx.save_for_backward(hidden_TH, weight_VH, rows_R, at_R, owned_R, highest_R, z_R, entropy_R)
        ctx.kept, ctx.layer = kept, layer
        ctx.set_materialize_grads(False)
        return chosen_R - highest_R - log_z_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):
        hidden_TH, weight_VH, rows_R, at_R, owned_R, highest_R, z_R, entropy_R = ctx.saved_tensors
        layer, wide = ctx.layer, torch.promote_types(hidden_TH.dtype, torch.float32)
        grad_R, grad_entropy_R = grads
        scale_R = (torch.zeros_like(entropy_R) if grad_R is None else grad_R) / layer.temperature
        grad_hidden_TH = torch.zeros_like(hidden_TH, dtype=wide)  # a row is the sum over all its targets
        gradient = _as_on(hidden_TH.device.type, _logits_gradient)
        grad_weight = _WeightGradient(weight_VH, layer, ctx.needs_input_grad[1])
        for rows, parts in _chunks(rows_R, layer):
            hidden, at, owned = hidden_TH[rows_R[rows]], at_R[rows], owned_R[rows]
            slope = None if grad_entropy_R is None else grad_entropy_R[rows] / layer.temperature
            known = _Rows(highest_R[rows], z_R[rows], scale_R[rows], entropy_R[rows], slope)
            for ids in parts:
                logits = ctx.kept.pop(0) if ctx.kept else hidden @ weight_VH[ids].T
                grad = gradient(_Block.of(layer, ids, logits, at, owned), known)
                del logits
                grad_hidden_TH.index_add_(0, rows_R[rows], (grad @ weight_VH[ids]).to(wide))
                grad_weight.add(hidden, grad, ids)
                del grad
        return grad_hidden_TH.to(hidden_TH.dtype), grad_weight.total, None, None, None


class _WeightGradient:
    """Sums the parts of a weight's gradient in fp32: in the weight's `main_grad`, or in a tensor of its own."""

    def __init__(self, weight: Tensor, layer: OutputLayer, needed: bool):
        self.main: Tensor | None = getattr(weight, "main_grad", None)
        self.total: Tensor | None = weight.new_zeros(()).expand_as(weight) if layer.reports and needed else None
        self.weight, self.accumulate, self.needed = weight, layer.accumulate, needed

    def add(self, hidden: Tensor, grad: Tensor, ids: slice) -> None:
        """Add the part of some rows and ids, from the rows' hidden states and the gradient of the logits."""
        if not self.needed:
            return
        if self.main is None:
            if self.total is None:
                self.total = torch.zeros_like(self.weight, dtype=torch.promote_types(grad.dtype, torch.float32))
            self.total[ids].add_(grad.T @ hidden)
        elif not self.accumulate:
            self.main[ids].add_(grad.T @ hidden)
        elif len(hidden):  # a vendor's operator need not know empty matrices
            self.accumulate(hidden, grad, self.main[ids])


def _chunks(rows_R: Tensor, layer: OutputLayer) -> Iterator[tuple[slice, list[slice]]]:
    """Yields slices of the rows, each with slices of the ids whose logits are computed together for these rows.

    Yields at least one slice of rows, so that results have the right type even if there are none.
    """
    columns = len(layer.weight_VH)
    for begin in range(0, max(1, len(rows_R)), ROWS):
        rows = slice(begin, min(begin + ROWS, len(rows_R)))
        size = columns
        if rows_R.device.type == "cpu":
            size = max(1, BLOCK_BYTES // (4 * max(1, rows.stop - rows.start)))
        yield rows, [slice(first, min(first + size, columns)) for first in range(0, columns, size)]


@cache
def _as_on(kind: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the function compiled for CUDA, and as it is for other devices."""
    return torch.compile(function) if kind == "cuda" else function


class _Block(NamedTuple):
    """Logits of some rows and ids, and what makes them part of distributions."""

    logits: Tensor
    """(rows, ids)."""
    temperature: float
    forbidden: Tensor
    at: Tensor
    """The columns of the targets; those of targets among other ids are meaningless."""
    owned: Tensor
    """Whether the target is among these ids."""

    @classmethod
    def of(cls, layer: OutputLayer, ids: slice, logits: Tensor, at: Tensor, owned: Tensor) -> "_Block":
        """Returns the logits of some ids; the columns and owners of the targets are those of the rank's whole part."""
        at, size = at - ids.start, ids.stop - ids.start
        owned = owned & (at >= 0) & (at < size)
        return cls(logits, layer.temperature, layer.forbidden_V[ids], at.clamp(0, size - 1), owned)

    def scaled(self) -> Tensor:
        """Returns logits / temperature in fp32, -inf for forbidden ids."""
        x = self.logits.to(torch.float32, copy=True)
        return x.div_(self.temperature).masked_fill_(self.forbidden, -torch.inf)


class _Rows(NamedTuple):
    """What the backward pass knows about each row of a chunk."""

    highest: Tensor
    """The maximum m of the scaled logits x over all ranks."""
    z: Tensor
    """The sum of exp(x - m) over all ranks."""
    scale: Tensor
    """Derivative of the loss by the row's logprob, divided by the temperature, because x is logits / temperature."""
    entropy: Tensor
    slope: Tensor | None
    """Derivative of the loss by the row's entropy, divided by the temperature; None if it is not used."""


def _sums(block: _Block) -> Tensor:
    """Returns (4, rows): of the scaled logits x, the maximum m, the sum of exp(x - m), the sum of exp(x - m) * (x - m),
    and x of the target, or 0 if it is not among these ids."""
    x = block.scaled()
    chosen = torch.where(block.owned, x.gather(1, block.at[:, None])[:, 0], 0.0)
    highest = x.amax(1).clamp_(min=torch.finfo(x.dtype).min)  # every one of these ids may be forbidden
    x = x.sub_(highest[:, None])
    p = x.exp()
    z = p.sum(1)
    return torch.stack([highest, z, p.mul_(x.clamp_(min=torch.finfo(x.dtype).min)).sum(1), chosen])


def _shifted(z: Tensor, weighted: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sums of exp(x - m) and exp(x - m) * (x - m) relative to a maximum m that is higher by -shift."""
    scale = shift.exp()
    return scale * z, scale * (weighted + z * shift)


def _together(parts: Tensor) -> Tensor:
    """Returns the sums (4, rows) over all ids from the sums (parts, 4, rows) over parts of them."""
    if len(parts) == 1:
        return parts[0]
    own, z, weighted, chosen = parts.unbind(1)
    highest = own.amax(0)
    z, weighted = _shifted(z, weighted, own - highest)
    return torch.stack([highest, z.sum(0), weighted.sum(0), chosen.sum(0)])


def _logits_gradient(block: _Block, known: _Rows) -> Tensor:
    """Returns the (rows, ids) gradient of the logits, in their type."""
    p = block.scaled().sub_(known.highest[:, None]).exp_().div_(known.z[:, None])
    grad = p * -known.scale[:, None]
    of_target = torch.where(block.owned, known.scale, 0.0)[:, None]
    if torch.compiler.is_compiling():  # a scattered sum would need grad in memory in fp32, and a kernel of its own
        columns = torch.arange(p.shape[1], device=p.device)
        grad = grad + torch.where(columns == block.at[:, None], of_target, 0.0)
    else:
        grad.scatter_add_(1, block.at[:, None], of_target)
    if known.slope is not None:  # d entropy / d x = -p (log p + entropy)
        grad -= known.slope[:, None] * (torch.xlogy(p, p) + p * known.entropy[:, None])
    return grad.to(block.logits.dtype)
