"""GRPO's formulas: tensors in, tensors out. Shao et al., "DeepSeekMath" (2024), section 4.1; DeepSeek-AI, "DeepSeek-R1"
(2025), 2.2.1.

P prompts, G responses per prompt, R response tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def advantages(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """(r - mean) / (std + 1e-6) in each group, over its scored samples; std with Bessel's correction.

    rewards_PG: (P, G), any value where not scored. scored_PG: (P, G) bool. Returns (P, G) float32: 0 where a sample was
    not scored, and in the groups that `without_spread` names.
    """
    count = scored_PG.sum(1, keepdim=True)
    rewards = torch.where(scored_PG, rewards_PG.double(), 0.0)
    mean = rewards.sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(scored_PG, rewards - mean, 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(without_spread(rewards_PG, scored_PG)[:, None], 0.0, centred / (std + 1e-6)).float()


def without_spread(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """Groups that teach nothing: fewer than two scored samples, or scored rewards that are all equal.

    Equality is decided on the rewards themselves, so that rounding noise in the mean is never divided by the small
    constant in `advantages`. Arguments as there; returns (P,) bool.
    """
    rewards = rewards_PG.double()
    lowest = torch.where(scored_PG, rewards, torch.inf).amin(1)
    highest = torch.where(scored_PG, rewards, -torch.inf).amax(1)
    return ~(highest > lowest)


def kl_k1(logprobs_R: Tensor, ref_logprobs_R: Tensor) -> Tensor:
    """log p - log ref: unbiased as a value, without the gradient of the KL as a loss (its expected gradient is 0)."""
    return logprobs_R - ref_logprobs_R


def kl_k2(logprobs_R: Tensor, ref_logprobs_R: Tensor) -> Tensor:
    """(log p - log ref)^2 / 2."""
    return (logprobs_R - ref_logprobs_R).square() / 2


def kl_k3(logprobs_R: Tensor, ref_logprobs_R: Tensor) -> Tensor:
    """ref/p - 1 - log(ref/p): never negative. DeepSeekMath, equation 4."""
    log_ratio = ref_logprobs_R - logprobs_R
    return log_ratio.expm1() - log_ratio


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
"""KL(policy || reference) a token, from a sample of the policy. Schulman, "Approximating KL divergence" (2020)."""


class Surrogate(NamedTuple):
    loss_R: Tensor
    """What is minimised, a token."""
    clipped_R: Tensor
    """1.0 where the clip took effect."""


def clipped_surrogate(logprobs_R: Tensor, old_logprobs_R: Tensor, advantages_R: Tensor, clip_ratio: float) -> Surrogate:
    """-min(ratio A, clip(ratio, 1 - c, 1 + c) A). Schulman et al., "Proximal Policy Optimization" (2017), equation
    7."""
    ratio = (logprobs_R - old_logprobs_R).exp()
    plain = -ratio * advantages_R
    clipped = -ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages_R
    return Surrogate(torch.maximum(plain, clipped), (clipped > plain).float())


def masked_sum(values_R: Tensor, mask_R: Tensor) -> Tensor:
    """Sum over the tokens where mask_R (bool) is true; what stands elsewhere does not count, even if it is not
    finite."""
    return torch.where(mask_R, values_R, 0.0).sum()


def token_mean(values_R: Tensor, mask_R: Tensor, tokens: float) -> Tensor:
    """Sum over this rank's unmasked tokens, divided by the unmasked tokens of the whole batch on all ranks:
    micro-batches and ranks add up to one mean, however the batch is cut."""
    return masked_sum(values_R, mask_R) / tokens
