"""The loss of a batch does not depend on how it is cut, whatever is chosen; and what is masked reaches nothing."""

import itertools
import math

import pytest
import torch

from r1zero.batch import LossSize
from r1zero.config import Grpo
from r1zero.objective import SUMS, Inputs, objective

LENGTHS = [3, 1, 4, 2, 5]
IN_LOSS = [True, True, False, True, True]
LONGEST = 8
SIZE = LossSize(11.0, 4.0, LONGEST)
RECIPES = {
    "seed": {},
    "Dr. GRPO": dict(advantage="none", aggregation="constant", kl_coef=0.0),
    "DAPO": dict(clip_high=0.28, kl_coef=0.0),
    "GSPO": dict(importance_ratio="sequence", aggregation="sequence", clip_low=3e-2, clip_high=4e-2),
    "CISPO": dict(surrogate="cispo", clip_low=1.0, clip_high=2.0),
    "dual clip, entropy, k3_unbiased": dict(dual_clip=1.5, entropy_coef=0.01, kl_estimator="k3_unbiased"),
    "TIS": dict(rollout_correction="truncate", rollout_correction_cap=1.005),
    "MIS": dict(rollout_correction="mask", rollout_correction_level="sequence", rollout_correction_cap=1.2),
    "sequence weights, KL in the reward": dict(importance_ratio="sequence", surrogate="cispo", kl_in="reward"),
}


def tokens(count, seed):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).double()


def inputs():
    """A batch off policy, with values that are not finite in the masked sample."""
    count = sum(LENGTHS)
    mask = torch.tensor(IN_LOSS).repeat_interleave(torch.tensor(LENGTHS))
    logprobs = (tokens(count, 0) - 2).requires_grad_()
    entropy = tokens(count, 1).abs().requires_grad_()
    return Inputs(
        logprobs,
        entropy,
        old_logprobs_R=torch.where(mask, logprobs.detach() + 0.5 * tokens(count, 2), math.nan),
        ref_logprobs_R=torch.where(mask, logprobs.detach() + tokens(count, 3), -math.inf),
        rollout_logprobs_R=logprobs.detach() + 0.01 * tokens(count, 4),
        advantages_B=torch.tensor([1.0, -1.0, 3.0, 0.5, -2.0]).double(),
        in_loss_B=torch.tensor(IN_LOSS),
        lengths_B=torch.tensor(LENGTHS),
    )


def part(x, samples):
    """The inputs of a micro-batch of these samples."""
    starts = [0, *itertools.accumulate(LENGTHS)]
    index = torch.tensor([t for i in samples for t in range(starts[i], starts[i + 1])], dtype=torch.long)
    chosen = torch.tensor(samples, dtype=torch.long)
    return Inputs(**{k: v[index] if k.endswith("_R") else v[chosen] for k, v in x._asdict().items()})


@pytest.mark.parametrize("name", RECIPES)
def test_the_shares_of_any_cut_add_up_to_the_same_loss_gradient_and_sums(name):
    cfg = Grpo(**RECIPES[name])
    found = []
    for cut in ([[0, 1, 2, 3, 4]], [[4, 0], [2], [], [3, 1]], [[i] for i in range(5)]):
        x = inputs()
        shares = [objective(cfg, part(x, samples), SIZE) for samples in cut]
        loss = sum(share.loss for share in shares)
        loss.backward()
        slopes = [v.grad if v.grad is not None else torch.zeros(len(v)).double() for v in x[:2]]
        found.append((loss.detach(), *slopes, sum(share.sums for share in shares)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)
    loss, slope, entropy_slope, sums = found[0]
    assert loss.isfinite() and slope.isfinite().all() and sums.isfinite().all() and slope.abs().sum() > 0
    masked = slice(4, 8)
    assert slope[masked].tolist() == [0.0] * 4 and entropy_slope[masked].tolist() == [0.0] * 4
    assert (entropy_slope.abs().sum() > 0) == ("entropy" in name)


def test_without_old_logprobs_the_policy_is_its_own_old_one():
    x = inputs()._replace(old_logprobs_R=None, ref_logprobs_R=None)
    found = objective(Grpo(), x, SIZE)
    found.loss.backward()
    advantages = (x.advantages_B * x.in_loss_B).repeat_interleave(x.lengths_B)
    torch.testing.assert_close(x.logprobs_R.grad, -advantages / SIZE.tokens)
    assert found.sums[SUMS.index("clipped")] == 0 and found.sums[SUMS.index("ppo_kl")] == 0


def test_the_correction_weighs_the_policy_loss_and_not_the_kl():
    # Trainer over engine: 3 at the first token of the first response and of the last, else 1.
    x = inputs()._replace(old_logprobs_R=None)
    apart = torch.zeros(sum(LENGTHS)).double()
    apart[[0, 10]] = math.log(3)
    x = x._replace(rollout_logprobs_R=x.logprobs_R.detach() - apart)
    plain = Grpo(kl_coef=0.5)
    found = {
        cap: objective(Grpo(kl_coef=0.5, rollout_correction="truncate", rollout_correction_cap=cap), x, SIZE)
        for cap in (1.0, 2.0, 5.0)
    }
    base = objective(plain, x, SIZE)
    assert found[1.0].loss.item() == pytest.approx(base.loss.item())
    # Loss of a token on policy is -A: advantages 1 and -2 at those tokens, weighted with the cap.
    for cap, weight in ((2.0, 2), (5.0, 3)):
        assert (found[cap].loss - base.loss).item() == pytest.approx((weight - 1) * (-1 + 2) / SIZE.tokens)
    sums = dict(zip(SUMS, found[2.0].sums.tolist(), strict=True))
    assert (sums["corrected"], sums["weight"], sums["weight_squared"]) == pytest.approx((2, 9 + 2 * 2, 9 + 2 * 4))
    assert found[5.0].sums[SUMS.index("corrected")] == 0 and base.sums[SUMS.index("weight_squared")] == SIZE.tokens


def test_kl_and_entropy_enter_the_loss_with_their_weights():
    x = inputs()
    plain, both, in_reward = (
        objective(cfg, x, SIZE).loss
        for cfg in (Grpo(kl_coef=0.0), Grpo(kl_coef=0.5, entropy_coef=0.25), Grpo(kl_coef=0.5, kl_in="reward"))
    )
    sums = objective(Grpo(), x, SIZE).sums / SIZE.tokens
    expected = 0.5 * sums[SUMS.index("kl")] - 0.25 * sums[SUMS.index("entropy")]
    assert (both - plain).item() == pytest.approx(expected.item()) and in_reward.item() == plain.item()
