"""The formulas of GRPO and of its variants, as functions of tensors.

Shao et al., "DeepSeekMath" (2024), section 4.1; DeepSeek-AI, "DeepSeek-R1" (2025), section 2.2.1.

Shapes: P prompts, G responses per prompt, B samples, R response tokens of those samples, concatenated.
"""

from typing import NamedTuple

import torch
from torch import Tensor


def advantages(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """Returns (r - mean) / (std + 1e-6) within each group of scored samples, with Bessel's correction in std.

    rewards_PG: (P, G); the values of samples that were not scored are ignored. scored_PG: (P, G) bool.
    Returns (P, G) float32. The advantage is 0 for a sample that was not scored, and for all samples of a group that
    `is_constant_group` marks.
    """
    count = scored_PG.sum(1, keepdim=True)
    centred = _centred(rewards_PG, scored_PG)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(is_constant_group(rewards_PG, scored_PG)[:, None], 0.0, centred / (std + 1e-6)).float()


def centred_advantages(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """Returns r - mean within each group, not divided by the standard deviation.

    Liu et al., "Understanding R1-Zero-Like Training" (2025, Dr. GRPO), section 3.2. Arguments and result are those of
    `advantages`.
    """
    return torch.where(is_constant_group(rewards_PG, scored_PG)[:, None], 0.0, _centred(rewards_PG, scored_PG)).float()


def batch_advantages(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """Returns (r - mean) / (std + 1e-6), with mean and std over all scored samples of the batch.

    Hu et al., "REINFORCE++" (2025), global advantage normalization. Arguments and result are those of `advantages`; P
    must be the prompts of all ranks.
    """
    return advantages(rewards_PG.reshape(1, -1), scored_PG.reshape(1, -1)).view(rewards_PG.shape)


def leave_one_out_advantages(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """Returns r minus the mean of the group's other scored samples, which is n / (n - 1) * (r - mean) for n samples.

    Ahmadian et al., "Back to Basics" (2024), the RLOO estimator. Arguments and result are those of `advantages`.
    """
    count = scored_PG.sum(1, keepdim=True)
    others = count / (count - 1).clamp(min=1) * _centred(rewards_PG, scored_PG)
    return torch.where(is_constant_group(rewards_PG, scored_PG)[:, None], 0.0, others).float()


def _centred(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """Returns r - mean over the group's scored samples, in float64; 0 for a sample that was not scored."""
    rewards = torch.where(scored_PG, rewards_PG.double(), 0.0)
    mean = rewards.sum(1, keepdim=True) / scored_PG.sum(1, keepdim=True).clamp(min=1)
    return torch.where(scored_PG, rewards - mean, 0.0)


ADVANTAGES = {
    "group": advantages,
    "none": centred_advantages,
    "batch": batch_advantages,
    "leave_one_out": leave_one_out_advantages,
}


def is_constant_group(rewards_PG: Tensor, scored_PG: Tensor) -> Tensor:
    """Marks groups without a learning signal: fewer than two scored samples, or scored rewards that are all equal.

    Equality is decided on the rewards themselves, so that rounding noise in the mean is never divided by the small
    constant in `advantages`. The arguments are those of `advantages`. Returns (P,) bool.
    """
    rewards = rewards_PG.double()
    lowest = torch.where(scored_PG, rewards, torch.inf).amin(1)
    highest = torch.where(scored_PG, rewards, -torch.inf).amax(1)
    return ~(highest > lowest)


def length_penalty(lengths_B: Tensor, longest: int, buffer: int) -> Tensor:
    """Returns 0 up to `longest - buffer` tokens, then a value that falls linearly to -1 at `longest` tokens.

    The result, (B,) float64, is to be added to the rewards. Yu et al., "DAPO" (2025), equation 13.
    """
    return ((longest - buffer - lengths_B).double() / buffer).clamp(-1.0, 0.0)


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


def kl_k3_unbiased(logprobs_R: Tensor, ref_logprobs_R: Tensor, old_logprobs_R: Tensor) -> Tensor:
    """p/old * k3, whose expected gradient over samples of the old policy is that of the KL.

    The gradient is p/old * log(p/ref) times that of log p. DeepSeek-AI, "DeepSeek-V3.2" (2025), equation 7.
    """
    return (logprobs_R - old_logprobs_R).exp() * kl_k3(logprobs_R, ref_logprobs_R)


def token_ratio(log_ratio_R: Tensor, lengths_B: Tensor) -> Tensor:
    """Returns (R,) ratios p/old. log_ratio_R: log p - log old. lengths_B: response tokens of each sample."""
    return log_ratio_R.exp()


def sequence_ratio(log_ratio_R: Tensor, lengths_B: Tensor) -> Tensor:
    """Returns, for each token, the geometric mean of p/old over the tokens of its response.

    Zheng et al., "Group Sequence Policy Optimization" (2025), equation 7. Arguments and result are those of
    `token_ratio`.
    """
    return (sequence_sums(log_ratio_R, lengths_B) / lengths_B.clamp(min=1)).exp().repeat_interleave(lengths_B)


RATIOS = {"token": token_ratio, "sequence": sequence_ratio}


def sequence_sums(values_R: Tensor, lengths_B: Tensor) -> Tensor:
    """Returns the (B,) sums over the tokens of each sample. values_R: (R,). lengths_B: (B,) int64 with sum R."""
    samples = torch.arange(len(lengths_B), device=values_R.device).repeat_interleave(lengths_B)
    return values_R.new_zeros(len(lengths_B)).index_add(0, samples, values_R)


class Clip(NamedTuple):
    """Bounds of the ratio, which is clipped to 1 - low .. 1 + high (Yu et al., "DAPO", 2025, equation 10)."""

    low: float
    high: float
    dual: float = 0.0
    """If the advantage A is negative, the loss is at most -dual * A; 0: no such bound. Dual-clip PPO: Ye et al.,
    "Mastering Complex Control in MOBA Games" (2020)."""


class Surrogate(NamedTuple):
    """The clipped surrogate objective, per token."""

    loss_R: Tensor
    """The loss of each token."""
    clipped_R: Tensor
    """1.0 where the clip took effect."""


def clipped_surrogate(ratio_R: Tensor, advantages_R: Tensor, logprobs_R: Tensor, clip: Clip) -> Surrogate:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) for each token.

    Schulman et al., "Proximal Policy Optimization Algorithms" (2017), equation 7. `logprobs_R` is not used.
    """
    plain = -ratio_R * advantages_R
    clipped = -ratio_R.clamp(1 - clip.low, 1 + clip.high) * advantages_R
    loss, is_clipped = torch.maximum(plain, clipped), clipped > plain
    if clip.dual:
        bound = -clip.dual * advantages_R
        beyond = (advantages_R < 0) & (loss > bound)
        loss, is_clipped = torch.where(beyond, bound, loss), is_clipped | beyond
    return Surrogate(loss, is_clipped.float())


def weighted_surrogate(ratio_R: Tensor, advantages_R: Tensor, logprobs_R: Tensor, clip: Clip) -> Surrogate:
    """-clip(ratio, 1 - low, 1 + high) A log p for each token, with the clipped ratio detached.

    Every token has a gradient, whatever its ratio. MiniMax, "MiniMax-M1" (2025, CISPO), equations 4 and 5.
    """
    ratio = ratio_R.detach()
    weight = ratio.clamp(1 - clip.low, 1 + clip.high)
    return Surrogate(-weight * advantages_R * logprobs_R, (weight != ratio).float())


SURROGATES = {"clip": clipped_surrogate, "cispo": weighted_surrogate}


def token_weight(log_ratio_R: Tensor, lengths_B: Tensor) -> Tensor:
    """Returns the (R,) probability ratios of trainer and engine of each token.

    log_ratio_R: log p of the trainer - log p of the engine. lengths_B: response tokens of each sample.
    """
    return log_ratio_R.exp()


def sequence_weight(log_ratio_R: Tensor, lengths_B: Tensor) -> Tensor:
    """Returns, for each token, the probability ratio of trainer and engine of its whole response.

    Arguments and result are those of `token_weight`.
    """
    return sequence_sums(log_ratio_R, lengths_B).exp().repeat_interleave(lengths_B)


MISMATCH_WEIGHTS = {"token": token_weight, "sequence": sequence_weight}


def truncated_weight(weight_R: Tensor, floor: float, cap: float) -> Tensor:
    """min(weight, cap): truncated importance sampling (TIS).

    Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).
    """
    return weight_R.clamp(max=cap)


def masked_weight(weight_R: Tensor, floor: float, cap: float) -> Tensor:
    """The weight if it is within floor .. cap, and 0 otherwise: tokens with a larger mismatch have no loss.

    Ling team, "Every Step Evolves" (2025, Ring-1T), IcePop. With the weight of the whole response: Liu et al., "When
    Speed Kills Stability" (2025), MIS.
    """
    return torch.where((weight_R >= floor) & (weight_R <= cap), weight_R, 0.0)


CORRECTIONS = {"truncate": truncated_weight, "mask": masked_weight}


def masked_sum(values_R: Tensor, mask_R: Tensor) -> Tensor:
    """Sum over the tokens where mask_R (bool) is true. Other values are ignored, even if they are not finite."""
    return torch.where(mask_R, values_R, 0.0).sum()


def token_mean(values_R: Tensor, mask_R: Tensor, tokens: float) -> Tensor:
    """Sum over this rank's unmasked tokens, divided by `tokens`, the unmasked tokens of the whole batch on all ranks.

    The results of all micro-batches and ranks add up to one mean, however the batch is divided among them.
    """
    return masked_sum(values_R, mask_R) / tokens


def sequence_mean(values_R: Tensor, mask_R: Tensor, lengths_B: Tensor, samples: float) -> Tensor:
    """Sum over this rank's unmasked samples of the mean over their tokens, divided by `samples`.

    samples: number of unmasked samples in the whole batch, on all ranks. The mask must cover whole samples.
    DeepSeekMath, equation 3.
    """
    return masked_sum(values_R / lengths_B.clamp(min=1).repeat_interleave(lengths_B), mask_R) / samples


def constant_mean(values_R: Tensor, mask_R: Tensor, samples: float, longest: int) -> Tensor:
    """Sum over this rank's unmasked tokens, divided by `samples` and the constant `longest`.

    samples: number of unmasked samples in the whole batch, on all ranks. Liu et al., "Understanding R1-Zero-Like
    Training" (2025, Dr. GRPO), listing 1.
    """
    return masked_sum(values_R, mask_R) / (samples * longest)
