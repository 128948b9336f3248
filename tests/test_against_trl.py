"""The losses and advantages of `[grpo]` equal TRL's where the definitions coincide.

The numbers are what TRL 1.16.0 returns for the inputs of test_against_verl.py: GRPOTrainer._compute_loss and the
statements of GRPOTrainer._generate_and_score_completions for the importance sampling ratio and the advantages
(trl/trainer/grpo_trainer.py), evaluated in one process without gradient accumulation. Its code is not used here.

Not compared: scale_rewards = "batch" divides by the deviation of the batch but subtracts the mean of the group, which
no value of grpo.advantage does; luspo, sapo and vespo have no counterpart.

python -m pytest tests/test_against_trl.py
"""

import pytest
import torch

from r1zero import grpo
from tests.test_against_verl import REFERENCE, REWARDS, loss_and_gradient

LOSSES = {
    'loss_type = "grpo"': (
        {"aggregation": "sequence"},
        0.011862785,
        [-0.0516121112, 0, -0.0508362168, 0.108357221, 0, 0, 0, -0.0338510166, 0.128033059, 0.191771853],
    ),
    'loss_type = "bnpo"': (
        {},
        -0.285912807,
        [-0.0619345335, 0, -0.0610034602, 0.0433428885, 0, 0, 0, -0.0541616266, 0.102426447, 0.153417482],
    ),
    'loss_type = "dr_grpo"': (
        {"aggregation": "constant"},
        -0.0893477522,
        [-0.0193545417, 0, -0.0190635813, 0.0135446526, 0, 0, 0, -0.0169255083, 0.0320082647, 0.0479429631],
    ),
    'loss_type = "dapo", epsilon_high = 0.28': (
        {"clip_high": 0.28},
        -0.313112807,
        [-0.0619345335, 0, -0.0610034602, 0.0433428885, 0, 0, 0, -0.0541616266, 0.102426447, 0.153417482],
    ),
    'loss_type = "cispo", epsilon_high = 1.25': (
        {"surrogate": "cispo", "clip_low": 1.0, "clip_high": 0.25},
        0.653520783,
        [
            -0.0619345335,
            -0.125,
            -0.0610034602,
            0.0433428885,
            -0.100000001,
            -0.100000001,
            -0.100000001,
            -0.0541616266,
            0.102426447,
            0.150000006,
        ],
    ),
    'loss_type = "grpo", importance_sampling_level = "sequence"': (
        {"importance_ratio": "sequence", "aggregation": "sequence", "clip_low": 0.03, "clip_high": 0.04},
        0.00690063686,
        [-0.0732460573, -0.0732460573, -0.0732460573, 0, 0, 0, 0, 0, 0.156694406, 0.156694406],
    ),
    'loss_type = "dapo", importance_sampling_level = "sequence"': (
        {"importance_ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04},
        -0.297274762,
        [-0.0878952688, -0.0878952688, -0.0878952688, 0, 0, 0, 0, 0, 0.125355525, 0.125355525],
    ),
    'loss_type = "dapo", delta = 1.25': (
        {"dual_clip": 1.25},
        -0.289330283,
        [-0.0619345335, 0, -0.0610034602, 0.0433428885, 0, 0, 0, -0.0541616266, 0.102426447, 0],
    ),
    'loss_type = "grpo", beta = 0.3': (
        {"aggregation": "sequence", "kl_coef": 0.3},
        0.0615402918,
        [
            -0.038532188,
            -0.0305954948,
            -0.0376098222,
            0.107271702,
            -0.0199219701,
            -0.0226230034,
            -0.0162945352,
            -0.0283474574,
            0.140428823,
            0.167246864,
        ],
    ),
    'loss_type = "dapo", beta = 0.3': (
        {"kl_coef": 0.3},
        -0.221744831,
        [
            -0.0462386256,
            -0.0367145937,
            -0.0451317866,
            0.0429086809,
            -0.0318751522,
            -0.0361968055,
            -0.0260712563,
            -0.0453559318,
            0.112343058,
            0.133797491,
        ],
    ),
    'loss_type = "dapo", beta = 0.3, use_bias_correction_kl': (
        {"kl_coef": 0.3, "kl_estimator": "k3_unbiased"},
        -0.198030885,
        [
            -0.0481729577,
            -0.0430923522,
            -0.0472224924,
            0.0429691902,
            -0.0343905217,
            -0.0412141584,
            -0.0268365482,
            -0.0471044035,
            0.112702491,
            0.134117701,
        ],
    ),
    'loss_type = "dapo", vllm_importance_sampling_mode = "token_truncate"': (
        {"rollout_correction": "truncate", "rollout_correction_cap": 1.1},
        -0.310552641,
        [-0.0534017708, 0, -0.0532019393, 0.0476771773, 0, 0, 0, -0.0595777893, 0.0776641546, 0.16875923],
    ),
    'loss_type = "dapo", vllm_importance_sampling_mode = "sequence_truncate"': (
        {"rollout_correction": "truncate", "rollout_correction_cap": 1.1, "rollout_correction_level": "sequence"},
        -0.265618397,
        [-0.0477769756, 0, -0.0470587355, 0.0476771773, 0, 0, 0, -0.0595777893, 0.100281911, 0.15020533],
    ),
    'loss_type = "dapo", vllm_importance_sampling_mode = "token_mask"': (
        {"rollout_correction": "mask", "rollout_correction_floor": 0.8, "rollout_correction_cap": 1.15},
        -0.33387541,
        [-0.0534017708, 0, -0.0532019393, 0, 0, 0, 0, 0, 0, 0],
    ),
    'loss_type = "dapo", vllm_importance_sampling_mode = "sequence_mask"': (
        {
            "rollout_correction": "mask",
            "rollout_correction_floor": 0.7,
            "rollout_correction_cap": 1.3,
            "rollout_correction_level": "sequence",
        },
        0.0630822197,
        [-0.0477769756, 0, -0.0470587355, 0, 0, 0, 0, 0, 0.100281911, 0.15020533],
    ),
}
"""TRL's arguments -> fields of [grpo], the loss, and its gradient with respect to the logprobs.

The epsilons are 0.2, or 0.03 and 0.04 at the level of sequences; the bounds of the importance sampling are those of
grpo.rollout_correction_floor and grpo.rollout_correction_cap.
"""
OF_REWARDS = {
    "group": [
        0.783185838,
        -1.30530973,
        -0.261061946,
        0.783185838,
        -0.499900013,
        -0.499900013,
        1.49970004,
        -0.499900013,
    ],
    "none": [0.375, -0.625, -0.125, 0.375, -0.25, -0.25, 0.75, -0.25],
}
"""scale_rewards and grpo.advantage, which have the same names -> advantages."""


@pytest.mark.parametrize("arguments", LOSSES)
def test_losses(arguments):
    fields, loss, gradient = LOSSES[arguments]
    got, found = loss_and_gradient(fields, REFERENCE)
    assert got == pytest.approx(loss, rel=1e-7)
    assert found == pytest.approx(gradient, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", OF_REWARDS)
def test_advantages(name):
    rewards = torch.tensor(REWARDS)
    got = grpo.ADVANTAGES[name](rewards, torch.ones_like(rewards, dtype=torch.bool)).double()
    if name == "group":  # TRL adds 1e-4 to the deviation, and this program 1e-6
        deviation = rewards.double().std(1, keepdim=True)
        got = got * (deviation + 1e-6) / (deviation + 1e-4)
    assert got.flatten().tolist() == pytest.approx(OF_REWARDS[name], rel=1e-6)
