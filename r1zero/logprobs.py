"""Logprobs of chosen tokens, and the entropy, from hidden states and an output layer whose vocabulary is split over
tensor-parallel ranks.

Logits are computed for ROWS target tokens at a time. If those of the whole pack take more than KEPT_BYTES, they are
computed again in the backward pass. Rows of the pack that predict no target are not computed at all.

What is computed from a chunk's logits passes over them in fp32 more than ten times each way. If every pass goes through
memory, this takes longer than the matrix products. On CUDA, torch.compile makes a few kernels of it. On a CPU it is
computed for a few rows at a time, which stay in the cache.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

ROWS = 1024
"""Number of target tokens whose logits are in memory at the same time."""
KEPT_BYTES = 32 << 20
"""Logits of at most this size are kept for the backward pass."""
BLOCK_BYTES = 4 << 20
"""Size in fp32 of the logits that are in a CPU's cache at the same time."""


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
    """(input, gradient of the output, total): adds the weight's gradient to its `main_grad`. Without it the product is
    made first, in the type of the hidden states."""

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
        kept, found = [], []
        for rows in _chunks(rows_R):
            logits = hidden_TH[rows_R[rows]] @ weight_VH.T
            kept += [logits] if keep else []
            found.append(_sums_of(_Chunk(logits, layer.temperature, layer.forbidden_V, at_R[rows], owned_R[rows])))
            del logits  # unless they are kept, free them before those of the next chunk are allocated
        own_R, z_R, weighted_R, chosen_R = torch.cat(found, 1)
        highest_R = own_R.clone()
        layer.all_reduce(highest_R, dist.ReduceOp.MAX)
        shift_R = own_R - highest_R  # the sums are relative to this rank's own maximum
        scale_R = shift_R.exp()
        sums = torch.stack([scale_R * z_R, scale_R * (weighted_R + z_R * shift_R), chosen_R + shift_R * owned_R])
        layer.all_reduce(sums, dist.ReduceOp.SUM)
        z_R, weighted_R, chosen_R = sums
        log_z_R = z_R.log()
        entropy_R = log_z_R - weighted_R / z_R
        ctx.save_for_backward(hidden_TH, weight_VH, rows_R, at_R, owned_R, highest_R, z_R, entropy_R)
        ctx.kept, ctx.layer = kept, layer
        ctx.set_materialize_grads(False)
        return chosen_R - log_z_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):
        hidden_TH, weight_VH, rows_R, at_R, owned_R, highest_R, z_R, entropy_R = ctx.saved_tensors
        layer, wide = ctx.layer, torch.promote_types(hidden_TH.dtype, torch.float32)
        grad_R, grad_entropy_R = grads
        scale_R = (torch.zeros_like(entropy_R) if grad_R is None else grad_R) / layer.temperature
        grad_hidden_TH = torch.zeros_like(hidden_TH, dtype=wide)  # a row is the sum over all its targets
        grad_weight = _WeightGradient(weight_VH, layer, ctx.needs_input_grad[1])
        for number, rows in enumerate(_chunks(rows_R)):
            hidden = hidden_TH[rows_R[rows]]
            logits = ctx.kept[number] if ctx.kept else hidden @ weight_VH.T
            chunk = _Chunk(logits, layer.temperature, layer.forbidden_V, at_R[rows], owned_R[rows])
            slope = None if grad_entropy_R is None else grad_entropy_R[rows] / layer.temperature
            grad = _gradient_of(chunk, _Rows(highest_R[rows], z_R[rows], scale_R[rows], entropy_R[rows], slope))
            del chunk, logits
            grad_hidden_TH.index_add_(0, rows_R[rows], (grad @ weight_VH).to(wide))
            grad_weight.add(hidden, grad)
            del grad
        ctx.kept = []
        return grad_hidden_TH.to(hidden_TH.dtype), grad_weight.total, None, None, None


class _WeightGradient:
    """Sums the parts of a weight's gradient in fp32: in the weight's `main_grad`, or in a tensor of its own."""

    def __init__(self, weight: Tensor, layer: OutputLayer, needed: bool):
        self.main: Tensor | None = getattr(weight, "main_grad", None)
        self.total: Tensor | None = weight.new_zeros(()).expand_as(weight) if layer.reports and needed else None
        self.accumulate, self.needed = layer.accumulate, needed

    def add(self, hidden: Tensor, grad: Tensor) -> None:
        """Add the part of some rows, from their hidden states and the gradient of their logits."""
        if not self.needed:
            return
        if self.main is not None and self.accumulate:
            if len(hidden):  # a vendor's operator need not know empty matrices
                self.accumulate(hidden, grad, self.main)
        elif self.main is not None:
            self.main.add_(grad.T @ hidden)
        elif self.total is None:
            self.total = (grad.T @ hidden).to(torch.promote_types(grad.dtype, torch.float32))
        else:
            self.total += grad.T @ hidden


def _chunks(rows_R: Tensor) -> Iterator[slice]:
    """Yields at least one slice, so that results have the right type even if there are no rows."""
    for begin in range(0, max(1, len(rows_R)), ROWS):
        yield slice(begin, begin + ROWS)


@cache
def _as_on(kind: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the function compiled for CUDA, and as it is for an NPU."""
    return torch.compile(function) if kind == "cuda" else function


class _Chunk(NamedTuple):
    """The logits of some rows, and what makes them distributions."""

    logits: Tensor
    """(rows, V) of this rank's part of the vocabulary."""
    temperature: float
    forbidden_V: Tensor
    at: Tensor
    """The columns of the targets; those that another rank owns are meaningless."""
    owned: Tensor

    def of(self, rows: slice) -> "_Chunk":
        """Returns some rows of the chunk."""
        return self._replace(logits=self.logits[rows], at=self.at[rows], owned=self.owned[rows])

    def blocks(self) -> Iterator[slice]:
        """Yields the rows that are computed together on a CPU; at least one slice."""
        size = max(1, BLOCK_BYTES // (4 * self.logits.shape[1]))
        for begin in range(0, max(1, len(self.logits)), size):
            yield slice(begin, begin + size)

    def scaled(self) -> Tensor:
        """Returns logits / temperature in fp32, -inf for forbidden ids."""
        x = self.logits.to(torch.float32, copy=True)
        return x.div_(self.temperature).masked_fill_(self.forbidden_V, -torch.inf)


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

    def of(self, rows: slice) -> "_Rows":
        """Returns what is known about some rows."""
        slope = None if self.slope is None else self.slope[rows]
        return _Rows(self.highest[rows], self.z[rows], self.scale[rows], self.entropy[rows], slope)


def _sums_of(chunk: _Chunk) -> Tensor:
    """Returns `_sums` of the chunk."""
    if chunk.logits.device.type == "cpu":
        return torch.cat([_sums(chunk.of(rows)) for rows in chunk.blocks()], 1)
    return _as_on(chunk.logits.device.type, _sums)(chunk)


def _gradient_of(chunk: _Chunk, known: _Rows) -> Tensor:
    """Returns `_logits_gradient` of the chunk. On a CPU it takes the place of the logits."""
    if chunk.logits.device.type == "cpu":
        for rows in chunk.blocks():
            chunk.logits[rows] = _logits_gradient(chunk.of(rows), known.of(rows))
        return chunk.logits
    return _as_on(chunk.logits.device.type, _logits_gradient)(chunk, known)


def _sums(chunk: _Chunk) -> Tensor:
    """Returns (4, rows): of the scaled logits x, the maximum m, the sum of exp(x - m), the sum of exp(x - m) * (x - m),
    and x - m of the target, or 0 if another rank owns it."""
    x = chunk.scaled()
    highest = x.amax(1).clamp_(min=torch.finfo(x.dtype).min)  # every id of this part may be forbidden
    x = x.sub_(highest[:, None])
    chosen = torch.where(chunk.owned, x.gather(1, chunk.at[:, None])[:, 0], 0.0)
    p = x.exp()
    z = p.sum(1)
    return torch.stack([highest, z, p.mul_(x.clamp_(min=torch.finfo(x.dtype).min)).sum(1), chosen])


def _logits_gradient(chunk: _Chunk, known: _Rows) -> Tensor:
    """Returns the (rows, V) gradient of the logits, in their type."""
    p = chunk.scaled().sub_(known.highest[:, None]).exp_().div_(known.z[:, None])
    grad = p * -known.scale[:, None]
    of_target = torch.where(chunk.owned, known.scale, 0.0)[:, None]
    if torch.compiler.is_compiling():  # a scattered sum would need grad in memory in fp32, and a kernel of its own
        columns = torch.arange(p.shape[1], device=p.device)
        grad = grad + torch.where(columns == chunk.at[:, None], of_target, 0.0)
    else:
        grad.scatter_add_(1, chunk.at[:, None], of_target)
    if known.slope is not None:  # d entropy / d x = -p (log p + entropy)
        grad -= known.slope[:, None] * (torch.xlogy(p, p) + p * known.entropy[:, None])
    return grad.to(chunk.logits.dtype)
