"""The losses, KL estimates and advantages of `[grpo]` equal verl's where the definitions coincide.

The numbers are what verl's own functions return for these inputs (verl/trainer/ppo/core_algos.py at commit b178a3cd,
evaluated in float64); its code is not used here. Its dual clip is switched off, except in the case of that name.

python -m pytest tests/test_against_verl.py
"""

import math

import pytest
import torch

from r1zero import grpo
from r1zero.batch import LossSize
from r1zero.config import Grpo
from r1zero.objective import Inputs, estimate_kl, objective

LENGTHS, ADVANTAGES = [3, 1, 4, 2], [1.0, -0.5, 0.8, -1.2]
SIZE = LossSize(tokens=10.0, samples=4.0, longest=8)


def wave(seed, scale):
    return torch.tensor([scale * math.sin(1.7 * seed + 2.3 * i + 0.41 * i * i) for i in range(10)]).double()


LOGPROBS = wave(1, 0.9) - 1.5
OLD, REFERENCE = LOGPROBS + wave(5, 0.6), LOGPROBS + wave(3, 0.8)
ROLLOUT = OLD + wave(4, 0.3)

LOSSES = {
    "PPO's clip, per token": (
        {},
        -0.285912813,
        [-0.0619345337, 0, -0.0610034611, 0.0433428882, 0, 0, 0, -0.0541616258, 0.102426444, 0.153417476],
    ),
    "a higher upper bound": (
        {"clip_high": 0.28},
        -0.313112813,
        [-0.0619345337, 0, -0.0610034611, 0.0433428882, 0, 0, 0, -0.0541616258, 0.102426444, 0.153417476],
    ),
    "dual clip": (
        {"dual_clip": 1.2},
        -0.295330289,
        [-0.0619345337, 0, -0.0610034611, 0.0433428882, 0, 0, 0, -0.0541616258, 0.102426444, 0],
    ),
    "mean of sequences": (
        {"aggregation": "sequence"},
        0.011862773,
        [-0.0516121112, 0, -0.0508362174, 0.108357219, 0, 0, 0, -0.033851016, 0.128033054, 0.191771844],
    ),
    "constant length": (
        {"aggregation": "constant"},
        -0.0893477541,
        [-0.0193545418, 0, -0.0190635816, 0.0135446525, 0, 0, 0, -0.016925508, 0.0320082636, 0.0479429612],
    ),
    "GSPO": (
        {"importance_ratio": "sequence", "aggregation": "sequence", "clip_low": 0.03, "clip_high": 0.04},
        0.0069006249,
        [-0.0732460577, -0.0732460577, -0.0732460577, 0, 0, 0, 0, 0, 0.156694399, 0.156694399],
    ),
    "CISPO": (
        {"surrogate": "cispo", "clip_low": 0.9, "clip_high": 0.25},
        0.653520788,
        [-0.0619345337, -0.125, -0.0610034611, 0.0433428882, -0.1, -0.1, -0.1, -0.0541616258, 0.102426444, 0.15],
    ),
    "TIS": (
        {"rollout_correction": "truncate", "rollout_correction_cap": 1.1},
        -0.310552645,
        [-0.0534017712, 0, -0.0532019399, 0.047677177, 0, 0, 0, -0.0595777883, 0.077664153, 0.168759223],
    ),
}
"""Name -> fields of [grpo], the loss, and its gradient with respect to the logprobs."""
KLS = {
    "k1": (-0.121513812, [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
    "k2": (
        0.191556958,
        [
            0.0740651746,
            -0.0799226371,
            0.0753015616,
            -0.00143698415,
            -0.0723921315,
            -0.0791434829,
            -0.0625425923,
            0.0347464851,
            0.0401304343,
            -0.0503196397,
        ],
    ),
    "k3": (
        0.213893256,
        [
            0.052319694,
            -0.122381985,
            0.0529055778,
            -0.0014473584,
            -0.106250511,
            -0.120656019,
            -0.0869041857,
            0.0293523155,
            0.0330553711,
            -0.0653999671,
        ],
    ),
}
REWARDS = [[1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 0.0]]
OF_REWARDS = {
    "group": [0.783347815, -1.30557969, -0.261115938, 0.783347815, -0.499999, -0.499999, 1.499997, -0.499999],
    "none": [0.375, -0.625, -0.125, 0.375, -0.25, -0.25, 0.75, -0.25],
    "leave_one_out": [0.5, -0.833333333, -0.166666667, 0.5, -0.333333333, -0.333333333, 1, -0.333333333],
    "batch": [1.13518118, -0.882918695, 0.126131243, 1.13518118, -0.882918695, -0.882918695, 1.13518118, -0.882918695],
}


def loss_and_gradient(fields, reference=None):
    """The loss of the batch above with these fields of `[grpo]`, and its gradient with respect to the logprobs."""
    logprobs = LOGPROBS.clone().requires_grad_()
    inputs = Inputs(
        logprobs,
        torch.zeros(10).double(),
        old_logprobs_R=OLD,
        ref_logprobs_R=reference,
        rollout_logprobs_R=ROLLOUT,
        advantages_B=torch.tensor(ADVANTAGES).double(),
        in_loss_B=torch.ones(4, dtype=torch.bool),
        lengths_B=torch.tensor(LENGTHS),
    )
    got = objective(Grpo(**{"kl_coef": 0.0, **fields}), inputs, SIZE).loss
    got.backward()
    return got.item(), logprobs.grad.tolist()


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    fields, loss, gradient = LOSSES[name]
    got, found = loss_and_gradient(fields)
    assert got == pytest.approx(loss, rel=1e-5)  # verl adds 1e-8 to the length of a sequence
    assert found == pytest.approx(gradient, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("estimator", KLS)
def test_kl_estimates(estimator):
    value, gradient = KLS[estimator]
    logprobs = LOGPROBS.clone().requires_grad_()
    got = estimate_kl(estimator, logprobs, REFERENCE, OLD).mean()
    got.backward()
    assert got.item() == pytest.approx(value, rel=1e-6)
    assert logprobs.grad.tolist() == pytest.approx(gradient, rel=1e-5)


@pytest.mark.parametrize("name", OF_REWARDS)
def test_advantages(name):
    rewards = torch.tensor(REWARDS)
    got = grpo.ADVANTAGES[name](rewards, torch.ones_like(rewards, dtype=torch.bool))
    assert got.flatten().tolist() == pytest.approx(OF_REWARDS[name], rel=1e-5)
