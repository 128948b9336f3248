"""Logprobs of chosen tokens, and the entropy, from logits whose vocabulary is split over tensor-parallel ranks."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

ROWS = 1024
"""Number of rows whose softmax is in memory at the same time."""


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

    logits_TV: (T, V / tp), this rank's part of the vocabulary. rows_R: the row of the logits that predicts each target;
    a row may occur several times. targets_R: token ids. forbidden_V: (V / tp,) bool, ids that stand for no token and
    are masked before the softmax. group: the tensor-parallel ranks, in the order of their parts of the vocabulary; None
    if the vocabulary is not split. Collective over `group`.
    """
    return TokenStats(*_TokenStats.apply(logits_TV, rows_R, targets_R, temperature, forbidden_V, group))


class _TokenStats(torch.autograd.Function):
    """Computes logprobs and entropy in chunks of ROWS rows.

    Keeps the logits for the backward pass in their own type. Softmax and scaled logits in fp32 exist for one chunk at a
    time, and are recomputed in the backward pass.
    """

    @staticmethod
    def forward(ctx, logits_TV, rows_R, targets_R, temperature, forbidden_V, group):  # noqa: PLR0913 (ctx is the seventh)
        softmax = _Softmax(logits_TV, rows_R, temperature, forbidden_V)
        shift_R = torch.cat([softmax.scaled(rows).amax(1) for rows in softmax.chunks()])
        _all_reduce(shift_R, dist.ReduceOp.MAX, group)
        local = targets_R - logits_TV.shape[1] * (dist.get_rank(group) if group else 0)
        owned_R = (local >= 0) & (local < logits_TV.shape[1])
        at_R = local.clamp(0, logits_TV.shape[1] - 1)
        # One collective for three sums: exp(x), exp(x) * x, and the target's own x, which only its owner contributes.
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
            # The last row of a shared prompt predicts the first token of several responses, so gradients are added.
            out.index_add_(0, rows_R[rows], grad.to(out.dtype))
            del p, grad  # free them before those of the next chunk are allocated
        return out, None, None, None, None, None


def _chunk_gradient(
    p: Tensor, scale: Tensor, at: Tensor, owned: Tensor, entropy: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Returns the (rows, V / tp) gradient of the logits.

    p: softmax of the logits. scale: gradient of each row's logprob. entropy: gradient of each row's entropy, and the
    entropy itself.
    """
    grad = p * -scale[:, None]
    grad.scatter_add_(1, at[:, None], torch.where(owned, scale, 0.0)[:, None])
    if entropy is not None:  # d entropy / d x = -p (log p + entropy)
        slope, value = entropy
        grad -= slope[:, None] * (torch.xlogy(p, p) + p * value[:, None])
    return grad


class _Softmax:
    """The rows of the logits that predict a target, chunk by chunk."""

    def __init__(self, logits_TV: Tensor, rows_R: Tensor, temperature: float, forbidden_V: Tensor):
        self.logits_TV, self.rows_R, self.temperature = logits_TV, rows_R, temperature
        self.forbidden_V = forbidden_V

    def chunks(self) -> list[slice]:
        """Returns at least one chunk, so that results have the right type even if there are no rows."""
        return [slice(begin, begin + ROWS) for begin in range(0, max(1, len(self.rows_R)), ROWS)]

    def scaled(self, rows: slice) -> Tensor:
        """Returns (rows, V / tp) in fp32: logits / temperature, -inf for forbidden ids."""
        x = self.logits_TV[self.rows_R[rows]].float().div_(self.temperature)
        return x.masked_fill_(self.forbidden_V, -torch.inf)

    def sums(self, rows: slice, shift_R: Tensor, at_R: Tensor, owned_R: Tensor) -> Tensor:
        """Returns (3, rows): the sum of exp(x), the sum of exp(x) * x, and x of the target if this rank owns it.

        x: scaled logits minus the maximum of the row. The sums are over this rank's part of the vocabulary.
        """
        x = self.scaled(rows)
        x -= shift_R[rows, None]
        p = x.exp()
        z = p.sum(1)
        chosen = torch.where(owned_R[rows], x.gather(1, at_R[rows, None])[:, 0], 0.0)
        return torch.stack([z, p.mul_(x.masked_fill_(self.forbidden_V, 0.0)).sum(1), chosen])


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp, group: dist.ProcessGroup | None) -> None:
    if group is not None and group.size() > 1:
        dist.all_reduce(tensor, operation, group=group)
