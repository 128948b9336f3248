"""Log-probabilities of chosen tokens from logits whose vocabulary is cut over tensor-parallel ranks, and the entropy
beside them."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


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
    @staticmethod
    def forward(ctx, logits_TV, rows_R, targets_R, temperature, forbidden_V, group):  # noqa: PLR0913 (ctx is the seventh)
        x = logits_TV[rows_R].float().div_(temperature).masked_fill_(forbidden_V, -torch.inf)  # (R, V / tp)
        shift = x.amax(1)
        _all_reduce(shift, dist.ReduceOp.MAX, group)
        x -= shift[:, None]
        width = x.shape[1]
        local = targets_R - width * (dist.get_rank(group) if group else 0)
        owned = (local >= 0) & (local < width)
        at = local.clamp(0, width - 1)
        p = x.exp()
        # One collective for all three sums: of exp, of exp * x, and the target's own x (from its owner).
        sums = torch.stack(
            [
                p.sum(1),
                (p * x.masked_fill(forbidden_V, 0.0)).sum(1),
                torch.where(owned, x.gather(1, at[:, None])[:, 0], 0.0),
            ]
        )
        _all_reduce(sums, dist.ReduceOp.SUM, group)
        z, weighted, chosen = sums
        ctx.logits, ctx.temperature = (logits_TV.shape, logits_TV.dtype), temperature
        log_z = z.log()
        entropy = log_z - weighted / z
        ctx.save_for_backward(p.div_(z[:, None]), rows_R, at, owned, entropy)
        ctx.set_materialize_grads(False)
        return chosen - log_z, entropy

    @staticmethod
    def backward(ctx, grad_R, grad_entropy_R):
        p, rows_R, at, owned, entropy_R = ctx.saved_tensors
        shape, dtype = ctx.logits
        scale = ((torch.zeros_like(entropy_R) if grad_R is None else grad_R) / ctx.temperature)[:, None]
        grad = p * -scale
        grad.scatter_add_(1, at[:, None], torch.where(owned[:, None], scale, 0.0))
        if grad_entropy_R is not None:  # d entropy / d x = -p (log p + entropy)
            grad -= (grad_entropy_R / ctx.temperature)[:, None] * (torch.xlogy(p, p) + p * entropy_R[:, None])
        # Each row predicts one target only, so rows never meet.
        return (
            torch.zeros(shape, dtype=dtype, device=grad.device).index_copy_(0, rows_R, grad.to(dtype)),
            None,
            None,
            None,
            None,
            None,
        )


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp, group: dist.ProcessGroup | None) -> None:
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, operation, group=group)
