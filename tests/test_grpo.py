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
    "kind, expected",
    [
        # Group 1 has rewards 1, 0, 0, 0 (mean 1/4), group 2 has 1, 1, not scored, 0 (mean 2/3), group 3 has only 1.
        ("none", [[0.75, -0.25, -0.25, -0.25], [1 / 3, 1 / 3, 0.0, -2 / 3], [0.0] * 4]),
        # 4/3 of that for 4 samples, 3/2 for 3.
        ("leave_one_out", [[1.0, -1 / 3, -1 / 3, -1 / 3], [0.5, 0.5, 0.0, -1.0], [0.0] * 4]),
        # 11 scored samples with 7 ones: mean 7/11, sum of squares 7 * 4/11 = 28/11, variance 28/110.
        ("batch", [[4, -7, -7, -7], [4, 4, 0, -7], [4] * 4]),
    ],
)
def test_the_other_advantages(kind, expected):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, math.nan, 0.0], [1.0, 1.0, 1.0, 1.0]])
    scored = torch.tensor([[True] * 4, [True, True, False, True], [True] * 4])
    got = grpo.ADVANTAGES[kind](rewards, scored)
    unit = 1 / 11 / math.sqrt(28 / 110) if kind == "batch" else 1.0
    torch.testing.assert_close(got, torch.tensor(expected) * unit, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", grpo.ADVANTAGES)
def test_constant_rewards_have_no_advantage_of_any_kind(kind):
    got = grpo.ADVANTAGES[kind](torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool))
    assert got.tolist() == [[0.0] * 3] * 2


def test_the_length_penalty_falls_over_the_buffer():
    # Longest 10, buffer 4: 0 up to 6 tokens, then a quarter a token.
    got = grpo.length_penalty(torch.tensor([1, 6, 7, 9, 10]), 10, 4)
    assert got.tolist() == [0.0, 0.0, -0.25, -0.75, -1.0]


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
    got = grpo.clipped_surrogate(
        (logp + 1.0).exp(), torch.tensor([advantage]).double(), logp, grpo.Clip(low=0.2, high=0.2)
    )
    got.loss_R.sum().backward()
    assert got.loss_R.item() == pytest.approx(loss) and logp.grad.item() == pytest.approx(slope)
    assert got.clipped_R.item() == float(slope == 0.0)


def test_the_unbiased_k3_has_the_slope_of_the_kl_and_averages_to_the_kl_s_gradient():
    # p = 0.5, old = 0.25, ref = 0.25: ratio 2, k3 = 0.5 - 1 + log 2; slope = ratio * log(p/ref) = 2 log 2.
    logp = torch.tensor([math.log(0.5)], dtype=torch.float64, requires_grad=True)
    quarter = torch.tensor([math.log(0.25)], dtype=torch.float64)
    kl = grpo.kl_k3_unbiased(logp, quarter, quarter)
    kl.sum().backward()
    assert kl.item() == pytest.approx(2 * (math.log(2) - 0.5)) and logp.grad.item() == pytest.approx(2 * math.log(2))
    # Over all tokens of a softmax, weighted with the old policy that samples them: value and gradient of the exact KL.
    logits = torch.tensor([0.3, -0.8, 1.1]).double().requires_grad_()
    ref, old = torch.tensor([0.2, 0.5, 0.3]).double().log(), torch.tensor([0.6, 0.1, 0.3]).double().log()
    estimated = (old.exp() * grpo.kl_k3_unbiased(logits.log_softmax(0), ref, old)).sum()
    exact = (logits.softmax(0) * (logits.log_softmax(0) - ref)).sum()
    slopes = [torch.autograd.grad(value, logits)[0] for value in (estimated, exact)]
    assert estimated.item() == pytest.approx(exact.item())
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(
    "ratio, advantage, clip, loss, slope",
    [
        (1.25, 1.0, grpo.Clip(0.2, 0.28), -1.25, -1.25),  # below the higher bound 1.28
        (1.5, 1.0, grpo.Clip(0.2, 0.28), -1.28, 0.0),
        (0.75, -1.0, grpo.Clip(0.3, 0.28), 0.75, 0.75),  # above the lower bound 0.7
        (5.0, -1.0, grpo.Clip(0.2, 0.2, 3.0), 3.0, 0.0),  # dual clip: the loss of a bad token ends at 3
        (2.0, -1.0, grpo.Clip(0.2, 0.2, 3.0), 2.0, 2.0),
        (5.0, 1.0, grpo.Clip(0.2, 0.2, 3.0), -1.2, 0.0),  # which is for negative advantages only
    ],
)
def test_two_bounds_and_the_dual_clip(ratio, advantage, clip, loss, slope):
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    got = grpo.clipped_surrogate(logp.exp(), torch.tensor([advantage]).double(), logp, clip)
    got.loss_R.sum().backward()
    assert got.loss_R.item() == pytest.approx(loss) and logp.grad.item() == pytest.approx(slope)
    assert got.clipped_R.item() == float(slope == 0.0)


@pytest.mark.parametrize(
    "ratio, advantage, weight", [(1.5, 1.0, 1.28), (1.5, -1.0, 1.28), (0.5, -1.0, 0.8), (1.1, 2.0, 1.1)]
)
def test_cispo_weighs_the_logprob_and_leaves_no_token_without_a_gradient(ratio, advantage, weight):
    logp = torch.tensor([math.log(ratio) - 2.0], dtype=torch.float64, requires_grad=True)
    clip = grpo.Clip(0.2, 0.28)
    got = grpo.weighted_surrogate((logp + 2.0).exp(), torch.tensor([advantage]).double(), logp, clip)
    got.loss_R.sum().backward()
    assert got.loss_R.item() == pytest.approx(-weight * advantage * (math.log(ratio) - 2.0))
    assert logp.grad.item() == pytest.approx(-weight * advantage)
    assert got.clipped_R.item() == float(weight != ratio)


def test_the_sequence_ratio_is_the_geometric_mean_over_a_response():
    # Two responses with token ratios 2, 8 and 3: sqrt(16) = 4 at both tokens, and 3.
    log_ratio = torch.tensor([2.0, 8.0, 3.0]).log().requires_grad_()
    got = grpo.sequence_ratio(log_ratio, torch.tensor([2, 1]))
    torch.testing.assert_close(got, torch.tensor([4.0, 4.0, 3.0]))
    got.sum().backward()  # each token has half of the two 4s
    torch.testing.assert_close(log_ratio.grad, torch.tensor([4.0, 4.0, 3.0]))


@pytest.mark.parametrize(
    "kind, level, floor, cap, weights",
    [
        # Ratios of two responses: 0.4, 4, 1 (product 1.6) and 0.5, 8 (product 4).
        ("truncate", "token", 0.0, 2.0, [0.4, 2.0, 1.0, 0.5, 2.0]),
        ("truncate", "sequence", 0.0, 2.0, [1.6, 1.6, 1.6, 2.0, 2.0]),
        ("mask", "token", 0.5, 5.0, [0.0, 4.0, 1.0, 0.5, 0.0]),
        ("mask", "sequence", 0.5, 3.0, [1.6, 1.6, 1.6, 0.0, 0.0]),
    ],
)
def test_mismatch_weights_by_hand(kind, level, floor, cap, weights):
    ratios = torch.tensor([0.4, 4.0, 1.0, 0.5, 8.0]).double()
    raw = grpo.MISMATCH_WEIGHTS[level](ratios.log(), torch.tensor([3, 2]))
    # The half at the floor is within it: rounding of log and exp must not decide that here.
    got = grpo.CORRECTIONS[kind](raw.round(decimals=9), floor, cap)
    torch.testing.assert_close(got, torch.tensor(weights).double())


def test_aggregations_by_hand():
    # Responses of 2 and 3 tokens in the loss and one of 1 token masked.
    values = torch.tensor([1.0, 3.0, 2.0, 4.0, 9.0, math.nan])
    lengths, mask = torch.tensor([2, 3, 1]), torch.tensor([True] * 5 + [False])
    assert grpo.token_mean(values, mask, 5.0).item() == pytest.approx(19 / 5)
    assert grpo.sequence_mean(values, mask, lengths, 2.0).item() == pytest.approx((4 / 2 + 15 / 3) / 2)
    assert grpo.constant_mean(values, mask, 2.0, 10).item() == pytest.approx(19 / 20)


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
