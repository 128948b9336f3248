"""The loss of one micro-batch, put together from the formulas that `[grpo]` chooses, and the sums that are logged.

B samples of the micro-batch, R their response tokens, laid end to end.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from r1zero import grpo
from r1zero.batch import LossSize
from r1zero.config import Grpo

SUMS = ("pg_loss", "kl", "entropy", "clipped", "ppo_kl", "gap", "gap_tokens", "corrected", "weight", "weight_squared")
"""Sums over the batch's unmasked response tokens."""


class Inputs(NamedTuple):
    logprobs_R: Tensor
    """By the policy; carries the gradient."""
    entropy_R: Tensor
    """Of the policy; its gradient is used where there is an entropy bonus."""
    old_logprobs_R: Tensor | None
    """By the policy that the ratio is taken to; None: the policy itself, detached."""
    ref_logprobs_R: Tensor | None
    """None: there is no reference."""
    rollout_logprobs_R: Tensor
    """By the engine while it sampled."""
    advantages_B: Tensor
    in_loss_B: Tensor
    """bool; the tokens of other samples are masked."""
    lengths_B: Tensor
    """Response tokens of each sample. int64."""


class Objective(NamedTuple):
    loss: Tensor
    """This micro-batch's share of the loss of the whole update: the shares add up to it."""
    sums: Tensor
    """(len(SUMS),) without gradient."""
    gap_max: Tensor
    """The largest distance of an unmasked token's logprob from the engine's."""


def objective(cfg: Grpo, x: Inputs, size: LossSize) -> Objective:
    """The loss that the fields of `[grpo]` describe. size: tokens and samples in the loss of the whole update, on all
    ranks, and the longest response that the run allows."""
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
    terms = policy_loss + cfg.kl_coef * kl if cfg.kl_in == "loss" else policy_loss
    if cfg.entropy_coef:
        terms = terms - cfg.entropy_coef * x.entropy_R
    with torch.no_grad():
        # What is not a number must not pass for agreement: maxima skip it.
        trainers = own if cfg.old_logprobs == "rollout" else old
        apart = (trainers - x.rollout_logprobs_R).abs().nan_to_num(nan=torch.inf)
        gap, weight = torch.where(mask, apart, 0.0), correction.weight_R
        figures = (policy_loss, kl, x.entropy_R, surrogate.clipped_R, old - x.logprobs_R, gap, torch.ones_like(gap))
        sums = torch.stack(
            [grpo.masked_sum(f, mask) for f in (*figures, correction.touched_R, weight, weight.square())]
        )
    return Objective(aggregate(cfg, terms, mask, lengths_B, size), sums, gap.max() if len(gap) else gap.sum())


def _where_unmasked(mask_R: Tensor, values_R: Tensor | None, own_R: Tensor) -> Tensor:
    """Of masked tokens, and of all where there are no values, the policy's own: a value that is not finite would reach
    the gradient through the mask."""
    return own_R if values_R is None else torch.where(mask_R, values_R, own_R)


class Correction(NamedTuple):
    """Of the mismatch between trainer and engine, without gradient."""

    weight_R: Tensor
    """Factor of the loss of each token."""
    touched_R: Tensor
    """1.0 where the cap or the mask took effect."""


def correct_mismatch(cfg: Grpo, log_ratio_R: Tensor, lengths_B: Tensor) -> Correction:
    """Weights of 1 without a correction. log_ratio_R: log p of the trainer - log p of the engine, 0 where masked."""
    if cfg.rollout_correction == "none":
        return Correction(torch.ones_like(log_ratio_R), torch.zeros_like(log_ratio_R))
    raw = grpo.MISMATCH_WEIGHTS[cfg.rollout_correction_level](log_ratio_R, lengths_B)
    limit = grpo.CORRECTIONS[cfg.rollout_correction]
    weight = limit(raw, cfg.rollout_correction_floor, cfg.rollout_correction_cap)
    return Correction(weight, (weight != raw).float())


def estimate_kl(estimator: str, logprobs_R: Tensor, ref_logprobs_R: Tensor, old_logprobs_R: Tensor) -> Tensor:
    """(R,) estimate of the KL of the policy to the reference, a token. estimator: as grpo.kl_estimator names it."""
    if estimator == "k3_unbiased":
        return grpo.kl_k3_unbiased(logprobs_R, ref_logprobs_R, old_logprobs_R)
    return grpo.KL_ESTIMATORS[estimator](logprobs_R, ref_logprobs_R)


def aggregate(cfg: Grpo, values_R: Tensor, mask_R: Tensor, lengths_B: Tensor, size: LossSize) -> Tensor:
    """This micro-batch's share of the loss, from that of its tokens."""
    if cfg.aggregation == "sequence":
        return grpo.sequence_mean(values_R, mask_R, lengths_B, size.samples)
    if cfg.aggregation == "constant":
        return grpo.constant_mean(values_R, mask_R, size.samples, size.longest)
    return grpo.token_mean(values_R, mask_R, size.tokens)
