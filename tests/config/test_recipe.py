"""Fields of a recipe that contradict each other are one sentence with the fields, their values and the cure."""

import pytest

from r1zero.config import Config, Grpo, Rollout, UserError, limits

ROLLOUT = Rollout(max_response_tokens=100)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(group_size=1), 'grpo.group_size = 1 with grpo.advantage = "group".*raise group_size'),
        (dict(group_size=1, advantage="leave_one_out"), 'group_size = 1 with grpo.advantage = "leave_one_out"'),
        (
            dict(group_size=1, advantage="batch", dynamic_sampling=True),
            "dynamic_sampling = true with grpo.group_size = 1",
        ),
        (dict(reward_scale=0.0), "grpo.reward_scale = 0.0 makes every reward 0"),
        (dict(kl_in="reward", kl_coef=0.0), 'grpo.kl_in = "reward" with grpo.kl_coef = 0.0.*raise kl_coef'),
        (dict(kl_in="reward", kl_estimator="k3_unbiased"), '"k3_unbiased" with grpo.kl_in = "reward".*k1, k2 or k3'),
        (dict(dual_clip=1.0), "grpo.dual_clip = 1.0; it must be more than 1"),
        (dict(dual_clip=3.0, surrogate="cispo"), 'grpo.dual_clip = 3.0 with grpo.surrogate = "cispo"'),
        (dict(rollout_correction="mask", old_logprobs="rollout"), '"mask" with grpo.old_logprobs = "rollout"'),
        (dict(rollout_correction_floor=0.5), 'rollout_correction_floor = 0.5 with grpo.rollout_correction = "none"'),
        (
            dict(rollout_correction_cap=5.0),
            'cap = 5.0 with grpo.rollout_correction = "none".*set.* = "truncate" or "mask", or remove.*_cap, or.* 2.0$',
        ),
        (dict(rollout_correction_level="sequence"), 'level = "sequence" with grpo.rollout_correction = "none"'),
        (
            dict(rollout_correction="truncate", rollout_correction_floor=0.5),
            'floor = 0.5 with grpo.rollout_correction = "truncate".*set rollout_correction = "mask", or remove',
        ),
        (dict(max_rounds=10), "max_rounds = 10 with grpo.dynamic_sampling = false.*set dynamic_sampling = true, or"),
        (dict(rollout_correction="mask", rollout_correction_floor=2.0), "floor = 2.0; it must be less than.* = 2.0"),
        (dict(prompts_per_iteration=2, group_size=2, mini_batches=5), "mini_batches = 5; it must be at most the 4"),
        (dict(mini_batches=0), "grpo.mini_batches = 0; it must be at least 1"),
        (dict(overlong="penalty"), 'overlong_buffer_tokens = 0 with grpo.overlong = "penalty".*between 1 and.* = 100'),
        (dict(overlong="penalty", overlong_buffer_tokens=101), "overlong_buffer_tokens = 101"),
        (dict(overlong_buffer_tokens=5), 'overlong_buffer_tokens = 5 with grpo.overlong = "keep"'),
    ],
)
def test_a_contradiction_is_refused(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        limits.check(Config(grpo=Grpo(**fields), rollout=ROLLOUT))


@pytest.mark.parametrize(
    "fields",
    [
        dict(group_size=1, advantage="batch"),
        dict(kl_in="reward", kl_estimator="k1"),
        dict(dual_clip=3.0, clip_high=0.28, importance_ratio="sequence", aggregation="sequence"),
        dict(overlong="penalty", overlong_buffer_tokens=100),
        dict(rollout_correction="mask", rollout_correction_floor=0.5, rollout_correction_cap=5.0, mini_batches=4),
        dict(rollout_correction="truncate", rollout_correction_cap=5.0, rollout_correction_level="sequence"),
        dict(dynamic_sampling=True, max_rounds=10),
        dict(rollout_correction_cap=2.0, rollout_correction_level="token", max_rounds=4),  # the defaults
        dict(old_logprobs="rollout", mini_batches=4, epochs=2),
    ],
)
def test_what_goes_together_is_not(fields):
    limits.check(Config(grpo=Grpo(**fields), rollout=ROLLOUT))
