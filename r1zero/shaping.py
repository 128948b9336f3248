"""Between grading and advantages: scales, clips and penalises rewards, and decides whose tokens are in the loss."""

import torch
from torch import Tensor

from r1zero import grpo
from r1zero.batch import Batch
from r1zero.config import Config
from r1zero.distributed.exchange import Rewards
from r1zero.grading import Graded, Samples
from r1zero.objective import estimate_kl


def shaped_rewards(cfg: Config, samples: Samples, graded: Graded) -> Tensor:
    """Returns (B,) float64: the rules' rewards, scaled, then clipped, then with the penalty on long responses."""
    rewards_B = graded.rewards_B * cfg.grpo.reward_scale
    if cfg.grpo.reward_clip:
        rewards_B = rewards_B.clamp(-cfg.grpo.reward_clip, cfg.grpo.reward_clip)
    if cfg.grpo.overlong == "penalty":
        lengths_B = torch.tensor([len(r.token_ids) for r in samples.responses])
        buffer = cfg.grpo.overlong_buffer_tokens
        rewards_B = rewards_B + grpo.length_penalty(lengths_B, cfg.rollout.max_response_tokens, buffer)
    return rewards_B


def engine_rewards(cfg: Config, samples: Samples, graded: Graded) -> Rewards:
    """Returns the rewards of an engine's samples, for `Exchange.gather_rewards`."""
    by_group = (-1, cfg.grpo.group_size)
    useful_P = ~grpo.is_constant_group(graded.rewards_B.view(by_group), graded.scored_B.view(by_group))
    useful_B = useful_P.repeat_interleave(cfg.grpo.group_size)
    return Rewards(shaped_rewards(cfg, samples, graded), graded.scored_B, useful_B)


def in_loss(cfg: Config, samples: Samples, graded: Graded) -> Tensor:
    """Returns (B,) bool: whether the tokens of a sample are in the loss.

    With overlong = "mask", responses that were cut off at the limit are not: overlong filtering (Yu et al., "DAPO",
    2025, section 3.4).
    """
    if cfg.grpo.overlong != "mask":
        return graded.scored_B
    return graded.scored_B & torch.tensor([r.finish_reason != "length" for r in samples.responses])


def sample_kl(estimator: str, batch: Batch) -> Tensor:
    """Returns the (B,) sums over each response of the estimated KL of the old policy to the reference."""
    old_R = batch.old_logprobs_R
    return grpo.sequence_sums(estimate_kl(estimator, old_R, batch.ref_logprobs_R, old_R), batch.response_lengths_B)
