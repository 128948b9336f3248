"""The loss of one micro-batch, composed of the formulas that `[grpo]` selects, and the sums that are logged.

Shapes: B samples of the micro-batch, R response tokens of those samples, concatenated.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from r1zero import grpo
from r1zero.batch import LossSize
from r1zero.config import Grpo

SUMS = ("pg_loss", "kl", "entropy", "clipped", "ppo_kl", "gap", "gap_tokens", "corrected", "weight", "weight_squared")
"""The sums over the batch's unmasked response tokens that `objective` returns."""


class Inputs(NamedTuple):
    """The values of one micro-batch from which its loss is computed."""

    logprobs_R: Tensor
    """Logprobs under the policy, with gradient."""
    entropy_R: Tensor
    """Entropy of the policy. Its gradient is used only if there is an entropy bonus."""
    old_logprobs_R: Tensor | None
    """Logprobs under the old policy, the denominator of the ratio; None: those of the policy itself, detached."""
    ref_logprobs_R: Tensor | None
    """Logprobs under the reference; None: there is no reference."""
    rollout_logprobs_R: Tensor
    """Logprobs that the engine computed while it sampled."""
    advantages_B: Tensor
    in_loss_B: Tensor
    """bool; the tokens of other samples are masked."""
    lengths_B: Tensor
    """Number of response tokens of each sample. int64."""


class Objective(NamedTuple):
    """The loss of one micro-batch, and what is logged about it."""

    loss: Tensor
    """This micro-batch's share of the update's loss, which is the sum over all micro-batches and ranks."""
    sums: Tensor
    """(len(SUMS),) without gradient."""
    gap_max: Tensor
    """Largest difference between the logprob of an unmasked token and the engine's."""


def objective(cfg: Grpo, x: Inputs, size: LossSize) -> Objective:
    """Returns the loss that the fields of `[grpo]` describe.

    size: number of samples and tokens of the whole update, on all ranks, by which the loss is divided.
    """
    lengths_B = x.lengths_B
    mask, advantages = (v.repeat_interleave(lengths_B) for v in (x.in_loss_B, x.advantages_B))
    own = x.logprobs_R.detach()
    old = _where_unmasked(mask, x.old_logprobs_R, own)
    ratio = grpo.RATIOS[cfg.importance_ratio](x.logprobs_R - old, lengths_B)
    clip = grpo.Clip(cfg.clip_low, cfg.clip_high, cfg.dual_clip)
    surrogate = grpo.SURROGATES[cfg.surrogate](ratio, advantages, x.logprobs_R, clip)
    correction = correct_mismatch(cfg, torch.where(mask, old - x.rollout_logprobs_R, 0.0), lengths_B)
    policy_loss = correction.weight_R * surrogate.loss_R if cfg.rollout_correction != "none" else surrogate.loss_R
    kl = torch.zeros_like(x.logprobs_R)
    if x.ref_logprobs_R is not None:
        kl = estimate_kl(cfg.kl_estimator, x.logprobs_R, _where_unmasked(mask, x.ref_logprobs_R, own), old)
    loss_R = policy_loss + cfg.kl_coef * kl if cfg.kl_in == "loss" else policy_loss
    if cfg.entropy_coef:
        loss_R = loss_R - cfg.entropy_coef * x.entropy_R
    with torch.no_grad():
        # A NaN counts as an infinite difference, because a maximum would ignore it.
        trainer_logprobs = own if cfg.old_logprobs == "rollout" else old
        distance = (trainer_logprobs - x.rollout_logprobs_R).abs().nan_to_num(nan=torch.inf)
        gap, weight = torch.where(mask, distance, 0.0), correction.weight_R
        logged = (policy_loss, kl, x.entropy_R, surrogate.clipped_R, old - x.logprobs_R, gap, torch.ones_like(gap))
        sums = torch.stack([grpo.masked_sum(f, mask) for f in (*logged, correction.touched_R, weight, weight.square())])
    return Objective(aggregate(cfg, loss_R, mask, lengths_B, size), sums, gap.max() if len(gap) else gap.sum())


def _where_unmasked(mask_R: Tensor, values_R: Tensor | None, own_R: Tensor) -> Tensor:
    """Returns the values, with the policy's own logprobs in place of those of masked tokens and of missing values.

    A value that is not finite would reach the gradient through the mask.
    """
    return own_R if values_R is None else torch.where(mask_R, values_R, own_R)


class Correction(NamedTuple):
    """The correction of the mismatch between trainer and engine, without gradient."""

    weight_R: Tensor
    """Factor of the policy loss of each token."""
    touched_R: Tensor
    """1.0 where the cap or the mask took effect."""


def correct_mismatch(cfg: Grpo, log_ratio_R: Tensor, lengths_B: Tensor) -> Correction:
    """Returns the weights that `grpo.rollout_correction` describes, or weights of 1 if it is "none".

    log_ratio_R: log p of the trainer - log p of the engine, 0 for masked tokens.
    """
    if cfg.rollout_correction == "none":
        return Correction(torch.ones_like(log_ratio_R), torch.zeros_like(log_ratio_R))
    raw = grpo.MISMATCH_WEIGHTS[cfg.rollout_correction_level](log_ratio_R, lengths_B)
    limit = grpo.CORRECTIONS[cfg.rollout_correction]
    weight = limit(raw, cfg.rollout_correction_floor, cfg.rollout_correction_cap)
    return Correction(weight, (weight != raw).float())


def estimate_kl(estimator: str, logprobs_R: Tensor, ref_logprobs_R: Tensor, old_logprobs_R: Tensor) -> Tensor:
    """Returns (R,) estimates of the KL of the policy to the reference. estimator: a value of grpo.kl_estimator."""
    if estimator == "k3_unbiased":
        return grpo.kl_k3_unbiased(logprobs_R, ref_logprobs_R, old_logprobs_R)
    return grpo.KL_ESTIMATORS[estimator](logprobs_R, ref_logprobs_R)


def aggregate(cfg: Grpo, values_R: Tensor, mask_R: Tensor, lengths_B: Tensor, size: LossSize) -> Tensor:
    """Returns this micro-batch's share of the loss, from the losses of its tokens."""
    if cfg.aggregation == "sequence":
        return grpo.sequence_mean(values_R, mask_R, lengths_B, size.samples)
    if cfg.aggregation == "constant":
        return grpo.constant_mean(values_R, mask_R, size.samples, size.longest)
    return grpo.token_mean(values_R, mask_R, size.tokens)
