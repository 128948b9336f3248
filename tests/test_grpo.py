"""GRPO's formulas against worked numbers and torch's own autograd."""

import math

import pytest
import torch

from r1zero import grpo

ALL = torch.ones(1, 4, dtype=torch.bool)


def test_advantage_of_one_right_answer_in_four_is_one_and_a_half_and_minus_a_half():
    # mean 1/4, sum of squares (9 + 1 + 1 + 1)/16 = 3/4, Bessel: variance 1/4, std 1/2
    got = grpo.advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), ALL)
    assert got.tolist()[0] == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-5)


def test_advantage_of_a_constant_group_is_exactly_zero_even_for_values_that_are_not_binary():
    assert grpo.advantages(torch.full((1, 4), 0.1), ALL).tolist() == [[0.0] * 4]


def test_an_unscored_sample_is_left_out_of_mean_and_std_and_has_no_advantage():
    scored = torch.tensor([[True, True, True, False]])
    got = grpo.advantages(torch.tensor([[1.0, 0.0, 0.0, math.nan]]), scored)
    # mean 1/3, squares (4 + 1 + 1)/9 = 2/3, variance 1/3
    assert got.tolist()[0] == pytest.approx([2 / 3 * math.sqrt(3), -math.sqrt(3) / 3, -math.sqrt(3) / 3, 0.0], rel=1e-5)


def test_a_group_with_one_scored_sample_has_no_advantage():
    scored = torch.tensor([[True, False, False, False]])
    assert grpo.advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scored).tolist() == [[0.0] * 4]


@pytest.mark.parametrize(
    "name, value, slope",
    [("k1", math.log(2), 1.0), ("k2", math.log(2) ** 2 / 2, math.log(2)), ("k3", 0.5 - 1 + math.log(2), 0.5)],
)
def test_kl_estimators_where_the_policy_is_twice_as_likely(name, value, slope):
    # p = 0.5, ref = 0.25: log ratio ref/p = -log 2; the slope of k3 is 1 - ref/p
    logp = torch.tensor([math.log(0.5)], dtype=torch.float64, requires_grad=True)
    kl = grpo.KL_ESTIMATORS[name](logp, torch.tensor([math.log(0.25)], dtype=torch.float64))
    kl.sum().backward()
    assert kl.item() == pytest.approx(value) and logp.grad.item() == pytest.approx(slope)


def test_k3_is_never_negative_and_averages_to_the_kl():
    p, q = torch.tensor([0.6, 0.3, 0.1]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    k3 = grpo.kl_k3(p.log(), q.log())
    assert (k3 >= 0).all() and (p * k3).sum().item() == pytest.approx((p * (p / q).log()).sum().item())


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy: the plain policy gradient
        (1.5, 1.0, -1.2, 0.0),  # good and already 50 % likelier: clipped at 1.2, no gradient
        (1.5, -1.0, 1.5, 1.5),  # bad and likelier: not clipped
        (0.5, 1.0, -0.5, -0.5),  # good and rarer: not clipped
        (0.5, -1.0, 0.8, 0.0),  # bad and rarer: clipped at 0.8
    ],
)
def test_clipped_surrogate(ratio, advantage, loss, slope):
    logp = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    got = grpo.clipped_surrogate(logp, torch.tensor([-1.0]).double(), torch.tensor([advantage]).double(), 0.2)
    got.loss_R.sum().backward()
    assert got.loss_R.item() == pytest.approx(loss) and logp.grad.item() == pytest.approx(slope)
    assert got.clipped_R.item() == float(slope == 0.0)


def test_token_mean_adds_up_over_any_cut_of_the_batch():
    values, mask = torch.arange(7.0), torch.tensor([True, True, False, True, True, True, False])
    whole = grpo.token_mean(values, mask, 5.0)
    assert whole.item() == pytest.approx((0 + 1 + 3 + 4 + 5) / 5)
    assert sum(
        grpo.token_mean(values[a:b], mask[a:b], 5.0) for a, b in ((0, 2), (2, 3), (3, 7))
    ).item() == pytest.approx(whole.item())


def test_what_is_masked_reaches_neither_the_mean_nor_the_gradient():
    values = torch.tensor([1.0, math.inf, math.nan], requires_grad=True)
    loss = grpo.token_mean(values, torch.tensor([True, False, False]), 2.0)
    loss.backward()
    assert loss.item() == 0.5 and values.grad.tolist() == [0.5, 0.0, 0.0]
