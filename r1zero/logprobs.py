"""Logprobs of chosen tokens, and the entropy, from logits whose vocabulary is split over tensor-parallel ranks."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class TokenStats(NamedTuple):
    """Logprob and entropy of R target tokens. float32."""

    logprobs_R: Tensor
    """log softmax(logits / temperature) at the targets, with gradient."""
    entropy_R: Tensor
    """Entropy of the same distribution in nats, with gradient. The gradient is computed only if it is used."""


def token_stats(
    logits_TV: Tensor,
    rows_R: Tensor,
    targets_R: Tensor,
    *,
    temperature: float,
    forbidden_V: Tensor,
    group: dist.ProcessGroup | None,
) -> TokenStats:
    """Returns logprob and entropy for R target tokens, in fp32 whatever the type of the logits.

    logits_TV: (T, V / tp), this rank's part of the vocabulary. rows_R: the row of the logits that predicts each target.
    targets_R: token ids. forbidden_V: (V / tp,) bool, ids that stand for no token and are masked before the softmax.
    group: the tensor-parallel ranks, in the order of their parts of the vocabulary; None if the vocabulary is not
    split. Collective over `group`.
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
        # One collective for three sums: exp(x), exp(x) * x, and the target's own x, which only its owner contributes.
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
        # Each row predicts one target only, so no row is written twice.
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
