"""Every recipe of `[grpo]` learns the same on one rank and on any layout of several."""

import pytest

from r1zero import config
from r1zero.config import MegatronGrid, VllmGrid
from tests import jobs

RUN = dict(seed=8)
"""With seed 7, rounding that differs between packs makes one sampled token differ after several updates."""
SAME = ("grpo/rewards/mean", "actor/pg_loss", "actor/kl_loss", "actor/entropy", "actor/pg_clipfrac", "grad_norm")
LAYOUTS = {
    "train DP2, two engines": (2, config.Layout()),
    "train TP2, rollout TP2": (
        2,
        config.Layout(train=MegatronGrid(tensor_model_parallel_size=2), rollout=VllmGrid(tensor_parallel_size=2)),
    ),
    "three grids, train PP2": (
        4,
        config.Layout(
            train=MegatronGrid(ranks="0-1", pipeline_model_parallel_size=2, pipeline_layers=(2, 1)),
            reference=MegatronGrid(ranks="2"),
            rollout=VllmGrid(ranks="3"),
        ),
    ),
}
RECIPES = {
    "REINFORCE++, KL in the reward, length penalty": dict(
        advantage="batch", kl_in="reward", kl_estimator="k1", overlong="penalty", overlong_buffer_tokens=12
    ),
    "RLOO, KL in the reward, overlong masked": dict(advantage="leave_one_out", kl_in="reward", overlong="mask"),
    "GSPO, entropy bonus": dict(importance_ratio="sequence", aggregation="sequence", entropy_coef=0.01),
    "four updates, TIS": dict(mini_batches=2, epochs=2, rollout_correction="truncate", rollout_correction_cap=1.0),
    "three updates on the engine's logprobs": dict(mini_batches=3, old_logprobs="rollout"),
    "Dr. GRPO, CISPO": dict(advantage="none", surrogate="cispo", aggregation="constant", reward_clip=0.5),
}
CASES = [
    ("train DP2, two engines", name) for name in RECIPES
] + [
    ("three grids, train PP2", "four updates, TIS"),
    ("train TP2, rollout TP2", "GSPO, entropy bonus"),
    ("three grids, train PP2", "REINFORCE++, KL in the reward, length penalty"),
]  # fmt: skip


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("qwen2"), "qwen2")


def steps(rank, cfg, count):
    def use(trainer):
        trainer.sync_and_check(0)
        return [trainer.step(i) for i in range(1, count + 1)]

    return jobs.with_trainer(rank, cfg, use)


@pytest.fixture(scope="module")
def alone(ranks, qwen2):
    """Recipe -> metrics of three steps on one rank, in packs of other sizes than those it is compared with."""
    found = {}

    def of(name):
        if name not in found:
            grpo = dict(prompts_per_iteration=8, group_size=4, kl_coef=0.05) | RECIPES[name]
            cfg = jobs.job_config(qwen2, config.Layout(), run=RUN, grpo=grpo, train=dict(micro_batch_tokens=160))
            found[name] = grpo, ranks.run(steps, cfg, 3, size=1)[0]
        return found[name]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("place, name", CASES)
def test_a_recipe_does_not_depend_on_layout_and_micro_batches(ranks, qwen2, alone, place, name):
    grpo, expected = alone(name)
    size, layout = LAYOUTS[place]
    results = ranks.run(steps, jobs.job_config(qwen2, layout, run=RUN, grpo=grpo), 3, size=size)
    for one, many in zip(expected, results[0], strict=True):
        for key in SAME:
            assert many[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key
    assert expected[0]["grad_norm"] > 0


@pytest.mark.slow
def test_the_kl_in_the_reward_grows_from_zero_and_moves_the_advantages(ranks, qwen2, alone):
    """In the first step the policy is the reference: with and without the KL in the reward it is the same step."""
    name = "REINFORCE++, KL in the reward, length penalty"
    grpo, with_kl = alone(name)
    layout = config.Layout()
    plain = dict(grpo, kl_in="loss", kl_coef=0.0)
    cfg = jobs.job_config(qwen2, layout, run=RUN, grpo=plain, train=dict(micro_batch_tokens=160))
    without = ranks.run(steps, cfg, 3, size=1)[0]
    assert with_kl[0]["grad_norm"] == pytest.approx(without[0]["grad_norm"], rel=1e-4)
    assert with_kl[0]["actor/kl_loss"] == pytest.approx(0.0, abs=1e-9) and with_kl[2]["actor/kl_loss"] > 0
    assert with_kl[2]["grad_norm"] != pytest.approx(without[2]["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_later_updates_leave_the_old_policy_and_the_gap_stays_the_engine_s(ranks, qwen2, alone):
    for name in ("four updates, TIS", "three updates on the engine's logprobs"):
        for figures in alone(name)[1]:
            assert figures["rollout_gap/max"] < 1e-5 and abs(figures["actor/ppo_kl"]) > 1e-6
            assert figures["actor/pg_clipfrac"] > 0
    last = alone("four updates, TIS")[1][-1]
    assert 0 < last["rollout_correction/touched"] < 1, "at a cap of 1 every ratio above it is cut"
    assert last["rollout_correction/effective_sample_size"] == pytest.approx(1.0, abs=1e-5)


DYNAMIC = dict(prompts_per_iteration=8, group_size=4, kl_coef=0.05, dynamic_sampling=True)


def dynamic(ranks, qwen2, layout, size, rule=jobs.RARE_RULE, **fields):
    cfg = jobs.job_config(qwen2, layout, grpo=DYNAMIC | fields, reward=dict(rules={rule: 1.0}))
    return ranks.run(steps, cfg, 3, size=size)[0]


@pytest.mark.slow
def test_dynamic_sampling_fills_the_batch_alike_on_one_engine_and_on_two(ranks, qwen2):
    results = [dynamic(ranks, qwen2, config.Layout(), size, max_rounds=3, mini_batches=2) for size in (1, 2)]
    for one, two in zip(*results, strict=True):
        for key in (*SAME, "dynamic_sampling/rounds", "dynamic_sampling/kept", "frac_reward_zero_std"):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-5), key
        rounds, kept = one["dynamic_sampling/rounds"], one["dynamic_sampling/kept"]
        # Either the batch is full, and may have been over-full, or every round was needed and all that was useful used.
        useful = 1 - one["frac_reward_zero_std"]
        assert kept * rounds == pytest.approx(1.0) or (rounds == 3 and kept == pytest.approx(useful))
        assert kept <= useful + 1e-9 and one["grad_norm"] > 0
    assert max(one["dynamic_sampling/rounds"] for one in results[0]) > 1


@pytest.mark.slow
def test_where_no_group_is_useful_all_rounds_are_drawn_and_nothing_is_learned(ranks, qwen2):
    found = dynamic(ranks, qwen2, config.Layout(), 2, rule="base_acc", max_rounds=2)
    for figures in found:
        assert (figures["dynamic_sampling/rounds"], figures["dynamic_sampling/kept"]) == (2.0, 0.0)
        assert figures["update/empty"] == 1.0 and figures["grad_norm"] == 0.0
