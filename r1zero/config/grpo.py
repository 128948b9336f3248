"""The section `[grpo]`: sampling, and the terms of the loss, each with a field of its own.

The README lists the fields of published recipes.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """GRPO and its variants. The defaults are those of the DeepSeek-R1-Zero-671B recipe that MindSpeed-RL published,
    except kl_estimator."""

    prompts_per_iteration: int = 384
    """P: number of prompts in an iteration, over all ranks."""
    group_size: int = 32
    """G: number of responses to each prompt."""
    kl_coef: float = 0.001
    """Weight of the KL to the reference; 0: no reference is loaded."""
    kl_estimator: Literal["k1", "k2", "k3", "k3_unbiased"] = "k3"
    """Schulman, "Approximating KL divergence" (2020). The config published for 384 dies uses k1. k3_unbiased: k3 times
    the ratio to the old policy, whose gradient is that of the KL (DeepSeek-AI, "DeepSeek-V3.2", 2025, equation 7)."""
    kl_in: Literal["loss", "reward"] = "loss"
    """loss: the KL is a term of the loss. reward: kl_coef times the KL, summed over the tokens of a response, is
    subtracted from its reward before advantages are computed (Ouyang et al., "InstructGPT", 2022, equation 2)."""
    advantage: Literal["group", "none", "batch", "leave_one_out"] = "group"
    """Normalization of the reward. group: by mean and standard deviation of its group. none: by the group's mean only
    (Dr. GRPO). batch: by mean and standard deviation of the whole batch (REINFORCE++). leave_one_out: by the mean of
    the group's other responses (RLOO)."""
    importance_ratio: Literal["token", "sequence"] = "token"
    """Level of the ratio to the old policy. sequence: its geometric mean over the response of a token (GSPO)."""
    surrogate: Literal["clip", "cispo"] = "clip"
    """clip: PPO's minimum of the plain and the clipped product of ratio and advantage. cispo: the product of the
    clipped ratio, detached, with the advantage and the logprob (MiniMax-M1)."""
    clip_low: float = 0.2
    """The ratio to the old policy is clipped to 1 - clip_low .. 1 + clip_high (DAPO). 1 or more: no lower bound."""
    clip_high: float = 0.2
    dual_clip: float = 0.0
    """If the advantage A is negative, the loss of a token is at most -dual_clip * A. It must be more than 1; 0: no such
    bound."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """token: the mean over all tokens of the batch. sequence: the mean over responses of the mean over their tokens.
    constant: the sum over tokens divided by the responses and by rollout.max_response_tokens (Dr. GRPO)."""
    entropy_coef: float = 0.0
    """Weight of the policy's entropy, which is subtracted from the loss."""
    overlong: Literal["keep", "mask", "penalty"] = "keep"
    """Treatment of responses that reach rollout.max_response_tokens. mask: their tokens are left out of the loss, but
    their rewards still count in their groups. penalty: DAPO's soft penalty on the reward, by length."""
    overlong_buffer_tokens: int = 0
    """With overlong = "penalty": the penalty grows from 0 to 1 over this many last tokens (DAPO, equation 13)."""
    rollout_correction: Literal["none", "truncate", "mask"] = "none"
    """Multiplies each token's policy loss by the ratio of the trainer's probability to the engine's at the time of
    sampling. truncate: the ratio is limited to the cap (TIS). mask: it is 0 outside floor .. cap (IcePop)."""
    rollout_correction_level: Literal["token", "sequence"] = "token"
    """Level of that ratio. sequence: the ratio of whole responses."""
    rollout_correction_cap: float = 2.0
    rollout_correction_floor: float = 0.0
    """With rollout_correction = "mask". IcePop's own bounds are 0.5 and 5."""
    old_logprobs: Literal["trainer", "rollout"] = "trainer"
    """The logprobs in the denominator of the ratio to the old policy. trainer: those that the trainer computes before
    the first update of the iteration. rollout: those that the engine computed while it sampled."""
    dynamic_sampling: bool = False
    """Leave out groups whose rewards are all equal, and draw prompts_per_iteration further prompts until the batch is
    full or max_rounds is reached (DAPO). A batch that is not full by then is used as it is."""
    max_rounds: int = 4
    """With dynamic_sampling: the largest number of times that an iteration draws prompts."""
    mini_batches: int = 1
    """Number of updates over which the samples of an iteration are distributed, in a seeded order."""
    epochs: int = 1
    """Number of times that each sample is used. Every epoch distributes the samples in another order."""
    reward_scale: float = 1.0
    """Factor of the rules' reward, applied before advantages are computed. Logged rewards are not scaled."""
    reward_clip: float = 0.0
    """The scaled reward is clipped to -reward_clip .. reward_clip; 0: no clipping."""
