"""The formulas of GRPO, as functions of tensors.

Shao et al., "DeepSeekMath" (2024), section 4.1; DeepSeek-AI, "DeepSeek-R1" (2025), section 2.2.1.

Shapes: P prompts, G responses per prompt, R response tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def advantages(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """Returns (r - mean) / (std + 1e-6) within each group of scored samples, with Bessel's correction in std.

    rewards_PG: (P, G); the values of samples that were not scored are ignored. scored_PG: (P, G) bool.
    Returns (P, G) float32. The advantage is 0 for a sample that was not scored, and for all samples of a group that
    `without_spread` marks.
    """
    count = scored_PG.sum(1, keepdim=True)
    rewards = torch.where(scored_PG, rewards_PG.double(), 0.0)
    mean = rewards.sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(scored_PG, rewards - mean, 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(without_spread(rewards_PG, scored_PG)[:, None], 0.0, centred / (std + 1e-6)).float()


def without_spread(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """Marks groups without a learning signal: fewer than two scored samples, or scored rewards that are all equal.

    Equality is decided on the rewards themselves, so that rounding noise in the mean is never divided by the small
    constant in `advantages`. The arguments are those of `advantages`. Returns (P,) bool.
    """
    rewards = rewards_PG.double()
    lowest = torch.where(scored_PG, rewards, torch.inf).amin(1)
    highest = torch.where(scored_PG, rewards, -torch.inf).amax(1)
    return ~(highest > lowest)


def kl_k1(logprobs_R: Tensor, ref_logprobs_R: Tensor) -> Tensor:
    """log p - log ref: unbiased as a value, but as a loss its expected gradient is 0 and not that of the KL."""
    return logprobs_R - ref_logprobs_R


def kl_k2(logprobs_R: Tensor, ref_logprobs_R: Tensor) -> Tensor:
    """(log p - log ref)^2 / 2."""
    return (logprobs_R - ref_logprobs_R).square() / 2


def kl_k3(logprobs_R: Tensor, ref_logprobs_R: Tensor) -> Tensor:
    """ref/p - 1 - log(ref/p): never negative. DeepSeekMath, equation 4."""
    log_ratio = ref_logprobs_R - logprobs_R
    return log_ratio.expm1() - log_ratio


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
"""Estimators of KL(policy || reference) per token, from a sample of the policy.

Schulman, "Approximating KL divergence" (2020).
"""


class Surrogate(NamedTuple):
    """The clipped surrogate objective, per token."""

    loss_R: Tensor
    """The loss of each token."""
    clipped_R: Tensor
    """1.0 where the clip took effect."""


def clipped_surrogate(logprobs_R: Tensor, old_logprobs_R: Tensor, advantages_R: Tensor, clip_ratio: float) -> Surrogate:
    """-min(ratio A, clip(ratio, 1 - c, 1 + c) A) for each token.

    Schulman et al., "Proximal Policy Optimization Algorithms" (2017), equation 7.
    """
    ratio = (logprobs_R - old_logprobs_R).exp()
    plain = -ratio * advantages_R
    clipped = -ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages_R
    return Surrogate(torch.maximum(plain, clipped), (clipped > plain).float())


def masked_sum(values_R: Tensor, mask_R: Tensor) -> Tensor:
    """Sum over the tokens where mask_R (bool) is true. Other values are ignored, even if they are not finite."""
    return torch.where(mask_R, values_R, 0.0).sum()


def token_mean(values_R: Tensor, mask_R: Tensor, tokens: float) -> Tensor:
    """Sum over this rank's unmasked tokens, divided by `tokens`, the unmasked tokens of the whole batch on all ranks.

    The results of all micro-batches and ranks add up to one mean, however the batch is divided among them.
    """
    return masked_sum(values_R, mask_R) / tokens
