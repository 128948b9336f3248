"""Rewards between grading and advantages, by worked values."""

import dataclasses

import torch

from r1zero.batch import Prompt, Response
from r1zero.config import Config, Grpo, Rollout
from r1zero.grading import Graded, Samples
from r1zero.shaping import engine_rewards, in_loss, shaped_rewards

CFG = Config(grpo=Grpo(prompts_per_iteration=3, group_size=2), rollout=Rollout(max_response_tokens=10))
# Three groups of two: different rewards; equal rewards; one sample that was not scored.
REWARDS, SCORED = [1.0, 0.0, 0.5, 0.5, 1.0, 0.0], [True, True, True, True, True, False]
LENGTHS = [10, 9, 8, 7, 1, 2]


def samples():
    prompts = [Prompt(p, (1,), "", "") for p in range(3)]
    responses = [
        Response(i // 2, i % 2, [3] * n, [0.0] * n, "length" if n == 10 else "stop") for i, n in enumerate(LENGTHS)
    ]
    rewards = torch.tensor(REWARDS, dtype=torch.float64)
    graded = Graded(rewards, torch.tensor(SCORED), torch.zeros(6).long(), {"acc": rewards}, rewards)
    return Samples(prompts, responses, 0), graded


def with_grpo(**fields):
    return dataclasses.replace(CFG, grpo=dataclasses.replace(CFG.grpo, **fields))


def test_a_group_is_useful_if_its_scored_rewards_differ():
    rewards = engine_rewards(CFG, *samples())
    assert rewards.useful_B.tolist() == [True, True, False, False, False, False]
    assert rewards.rewards_B.tolist() == REWARDS and rewards.scored_B.tolist() == SCORED


def test_a_reward_is_scaled_then_clipped_then_penalised_for_its_length():
    assert shaped_rewards(with_grpo(reward_scale=4.0, reward_clip=3.0), *samples()).tolist() == [3, 0, 2, 2, 3, 0]
    penalised = shaped_rewards(with_grpo(overlong="penalty", overlong_buffer_tokens=2), *samples())
    assert penalised.tolist() == [0.0, -0.5, 0.5, 0.5, 1.0, 0.0]


def test_only_a_mask_leaves_responses_that_were_cut_off_out_of_the_loss():
    assert in_loss(CFG, *samples()).tolist() == SCORED
    assert in_loss(with_grpo(overlong="mask"), *samples()).tolist() == [False, *SCORED[1:]]
