"""Log-probabilities of chosen tokens from logits whose vocabulary is cut over tensor-parallel ranks, and the entropy
beside them."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

ROWS = 1024
"""Rows whose softmax is in memory at a time."""


class TokenStats(NamedTuple):
    logprobs_R: Tensor
    """log softmax(logits / temperature) at the targets; carries the gradient."""
    entropy_R: Tensor
    """Of the same distribution, in nats. Its gradient costs a pass over the vocabulary only where it is used."""


def token_stats(
    logits_TV: Tensor,
    rows_R: Tensor,
    targets_R: Tensor,
    *,
    temperature: float,
    forbidden_V: Tensor,
    group: dist.ProcessGroup | None,
) -> TokenStats:
    """logits_TV: (t, V / tp) of this rank's part of the vocabulary. rows_R: the row that predicts each target.

    forbidden_V: (V / tp,) bool, ids that no token has: masked before the softmax. group: the tensor-parallel ranks, in
    order of their parts; None: one rank. All results are fp32, whatever the logits are.
    """
    return TokenStats(*_TokenStats.apply(logits_TV, rows_R, targets_R, temperature, forbidden_V, group))


class _TokenStats(torch.autograd.Function):
    """Works on ROWS rows at a time and keeps the logits as they are, in their own type: softmax and scaled logits in
    fp32 exist for one chunk only, and are computed again in the backward pass."""

    @staticmethod
    def forward(ctx, logits_TV, rows_R, targets_R, temperature, forbidden_V, group):  # noqa: PLR0913 (ctx is the seventh)
        softmax = _Softmax(logits_TV, rows_R, temperature, forbidden_V)
        shift_R = torch.cat([softmax.scaled(rows).amax(1) for rows in softmax.chunks()])
        _all_reduce(shift_R, dist.ReduceOp.MAX, group)
        local = targets_R - logits_TV.shape[1] * (dist.get_rank(group) if group else 0)
        owned_R = (local >= 0) & (local < logits_TV.shape[1])
        at_R = local.clamp(0, logits_TV.shape[1] - 1)
        # One collective for all three sums: of exp, of exp * x, and the target's own x (from its owner).
        sums = torch.cat([softmax.sums(rows, shift_R, at_R, owned_R) for rows in softmax.chunks()], 1)
        _all_reduce(sums, dist.ReduceOp.SUM, group)
        z_R, weighted_R, chosen_R = sums
        log_z_R = z_R.log()
        entropy_R = log_z_R - weighted_R / z_R
        ctx.save_for_backward(logits_TV, rows_R, forbidden_V, shift_R, z_R, at_R, owned_R, entropy_R)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return chosen_R - log_z_R, entropy_R

    @staticmethod
    def backward(ctx, grad_R, grad_entropy_R):
        logits_TV, rows_R, forbidden_V, shift_R, z_R, at_R, owned_R, entropy_R = ctx.saved_tensors
        softmax = _Softmax(logits_TV, rows_R, ctx.temperature, forbidden_V)
        scale_R = (torch.zeros_like(entropy_R) if grad_R is None else grad_R) / ctx.temperature
        out = torch.zeros_like(logits_TV)
        for rows in softmax.chunks():
            p = softmax.scaled(rows).sub_(shift_R[rows, None]).exp_().div_(z_R[rows, None])
            entropy = None if grad_entropy_R is None else (grad_entropy_R[rows] / ctx.temperature, entropy_R[rows])
            grad = _chunk_gradient(p, scale_R[rows], at_R[rows], owned_R[rows], entropy)
            # Each row predicts one target only, so rows never meet.
            out.index_copy_(0, rows_R[rows], grad.to(out.dtype))
            del p, grad  # or they would be there beside those of the next chunk
        return out, None, None, None, None, None


def _chunk_gradient(
    p: Tensor, scale: Tensor, at: Tensor, owned: Tensor, entropy: tuple[Tensor, Tensor] | None
) -> Tensor:
    """(rows, V / tp) gradient of the logits. p: their softmax. scale: gradient of each row's logprob. entropy: gradient
    of each row's entropy, and the entropy."""
    grad = p * -scale[:, None]
    grad.scatter_add_(1, at[:, None], torch.where(owned, scale, 0.0)[:, None])
    if entropy is not None:  # d entropy / d x = -p (log p + entropy)
        slope, value = entropy
        grad -= slope[:, None] * (torch.xlogy(p, p) + p * value[:, None])
    return grad


class _Softmax:
    """The chosen rows of the logits, chunk by chunk."""

    def __init__(self, logits_TV: Tensor, rows_R: Tensor, temperature: float, forbidden_V: Tensor):
        self.logits_TV, self.rows_R, self.temperature = logits_TV, rows_R, temperature
        self.forbidden_V = forbidden_V

    def chunks(self) -> list[slice]:
        """At least one, so that results have the right type where there are no rows."""
        return [slice(begin, begin + ROWS) for begin in range(0, max(1, len(self.rows_R)), ROWS)]

    def scaled(self, rows: slice) -> Tensor:
        """(rows, V / tp) fp32: logits / temperature, -inf where forbidden."""
        x = self.logits_TV[self.rows_R[rows]].float().div_(self.temperature)
        return x.masked_fill_(self.forbidden_V, -torch.inf)

    def sums(self, rows: slice, shift_R: Tensor, at_R: Tensor, owned_R: Tensor) -> Tensor:
        """(3, rows): sums over this rank's part of the vocabulary of exp(x), of exp(x) * x, and the target's x where it
        is here, with x less the row's maximum."""
        x = self.scaled(rows)
        x -= shift_R[rows, None]
        p = x.exp()
        z = p.sum(1)
        chosen = torch.where(owned_R[rows], x.gather(1, at_R[rows, None])[:, 0], 0.0)
        return torch.stack([z, p.mul_(x.masked_fill_(self.forbidden_V, 0.0)).sum(1), chosen])


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp, group: dist.ProcessGroup | None) -> None:
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, operation, group=group)
