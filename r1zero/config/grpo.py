"""The section `[grpo]`: what is sampled, and the terms of the loss, each a field of its own. README: which fields make
which published recipe."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """Defaults: the recipe of DeepSeek-R1-Zero-671B as MindSpeed-RL published it."""

    prompts_per_iteration: int = 384
    """P: prompts of one iteration, over all ranks."""
    group_size: int = 32
    """G: responses to each prompt."""
    kl_coef: float = 0.001
    """Weight of the KL to the reference in the loss; 0: no reference is loaded."""
    kl_estimator: Literal["k1", "k2", "k3", "k3_unbiased"] = "k3"
    """Schulman, "Approximating KL divergence" (2020). The published 384-die file has k1. k3_unbiased: k3 times the
    ratio to the old policy, whose gradient is that of the KL (DeepSeek-AI, "DeepSeek-V3.2", 2025, equation 7)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """reward: kl_coef times the sum of the estimate over a response's tokens is subtracted from its reward before
    advantages are computed (Ouyang et al., "InstructGPT", 2022, equation 2)."""
    advantage: Literal["group", "none", "batch", "leave_one_out"] = "group"
    """What the reward is compared with. group: mean and standard deviation of its group. none: the group's mean only
    (Dr. GRPO). batch: mean and standard deviation of the whole batch (REINFORCE++). leave_one_out: the mean of the
    group's other responses (RLOO)."""
    importance_ratio: Literal["token", "sequence"] = "token"
    """The ratio to the old policy. sequence: its geometric mean over a response, at each of its tokens (GSPO)."""
    surrogate: Literal["clip", "cispo"] = "clip"
    """clip: PPO's minimum of the plain and the clipped product of ratio and advantage. cispo: the clipped ratio is a
    detached weight of the advantage times the logprob (MiniMax-M1)."""
    clip_low: float = 0.2
    """The ratio to the old policy is clipped to 1 - clip_low .. 1 + clip_high (DAPO). 1 or more: no lower bound."""
    clip_high: float = 0.2
    dual_clip: float = 0.0
    """Where the advantage A is negative, a token's loss is at most -dual_clip * A; more than 1. 0: no such bound."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """token: the mean over all tokens of the batch. sequence: the mean over responses of the mean over their tokens.
    constant: the sum over tokens divided by the responses and by rollout.max_response_tokens (Dr. GRPO)."""
    entropy_coef: float = 0.0
    """Weight of the entropy of the policy, which is subtracted from the loss."""
    overlong: Literal["keep", "mask", "penalty"] = "keep"
    """What is done about responses that reach rollout.max_response_tokens. mask: their tokens are left out of the loss,
    and their rewards still count in their groups. penalty: DAPO's soft penalty on the reward, by length."""
    overlong_buffer_tokens: int = 0
    """With overlong = "penalty": the penalty grows from 0 to 1 over the last so many tokens (DAPO, equation 13)."""
    rollout_correction: Literal["none", "truncate", "mask"] = "none"
    """A weight of each token's policy loss by the ratio of the trainer's probability to the engine's at the time of
    sampling. truncate: at most the cap (TIS). mask: 0 outside floor .. cap (IcePop)."""
    rollout_correction_level: Literal["token", "sequence"] = "token"
    """sequence: the ratio of whole responses."""
    rollout_correction_cap: float = 2.0
    rollout_correction_floor: float = 0.0
    """With rollout_correction = "mask"; IcePop's own bounds are 0.5 and 5."""
    old_logprobs: Literal["trainer", "rollout"] = "trainer"
    """Whose logprobs the ratio to the old policy has in its denominator: the trainer's before the first update of the
    iteration, or those the engine sampled with."""
    dynamic_sampling: bool = False
    """Groups whose rewards are all equal are left out, and further prompts_per_iteration prompts are drawn until the
    batch is full or max_rounds is reached (DAPO). A batch that is not full then is used as it is."""
    max_rounds: int = 4
    """With dynamic_sampling: how often an iteration draws prompts at most."""
    mini_batches: int = 1
    """Updates in which an iteration's samples are used once, each on other samples in a seeded order."""
    epochs: int = 1
    """How often an iteration's samples are used, every time cut into mini_batches in another order."""
    reward_scale: float = 1.0
    """The reward of the rules is multiplied by this before advantages are computed; the logged one is not."""
    reward_clip: float = 0.0
    """The scaled reward is clipped to -reward_clip .. reward_clip; 0: it is not clipped."""
