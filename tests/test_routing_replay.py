"""Whole steps with train.routing_replay, on an engine that chooses otherwise than the trainer wherever two experts are
equal.

python -m pytest tests/test_routing_replay.py
"""

import pytest

from r1zero import config
from r1zero.config import MegatronGrid, VllmGrid
from tests import jobs

LAYOUTS = {
    "one rank": (1, config.Layout()),
    "tensors and experts over two ranks": (
        2,
        config.Layout(
            train=MegatronGrid(tensor_model_parallel_size=2, expert_model_parallel_size=2),
            rollout=VllmGrid(tensor_parallel_size=2, enable_expert_parallel=True),
        ),
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
SAME = ("grpo/rewards/mean", "actor/pg_loss", "grad_norm", "routing_replay/replaced")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("base"), "deepseek_v3")


@pytest.fixture(scope="module")
def tied(base, tmp_path_factory):
    return jobs.make_ties(base, tmp_path_factory.mktemp("tied") / "model")


def step(rank, cfg, other_at_ties=True):
    def use(trainer):
        engine = trainer.roles.engine
        trainer.sync.writers = {}  # all weights by way of `reload`
        if engine and other_at_ties:
            plain = engine.reload
            engine.reload = lambda tensors: plain(
                (name, jobs.prefer_expert_2(tensor) if name == jobs.BIAS else tensor) for name, tensor in tensors
            )
        trainer.sync_and_check(0)
        return trainer.step(1)

    return jobs.with_trainer(rank, cfg, use)


@pytest.fixture(scope="module")
def stepped(ranks, tied):
    """stepped(layout, replay, **fields of [train]) -> metrics of one step of two updates."""

    def run(layout, replay, **train):
        size, grids = LAYOUTS[layout]
        cfg = jobs.job_config(
            tied,
            grids,
            grpo=dict(prompts_per_iteration=8, group_size=4, kl_coef=0.05, mini_batches=2),
            optimizer=dict(lr=0.0),
            train=dict(micro_batch_tokens=256, routing_replay=replay) | train,
        )
        return ranks.run(step, cfg, size=size)[0]

    return run


@pytest.fixture(scope="module")
def alone(stepped):
    return stepped("one rank", True)


def test_with_the_engine_s_experts_the_trainer_has_its_logprobs(alone, stepped):
    without = stepped("one rank", False)
    assert without["rollout_gap/max"] > 0.01 and without["rollout_gap/mean"] > 1e-3
    assert alone["rollout_gap/max"] < 1e-5 and 0.01 < alone["routing_replay/replaced"] < 0.5
    assert "routing_replay/replaced" not in without
    # The reference and the old policy are the policy, with the same experts.
    assert abs(alone["actor/kl_loss"]) < 1e-9 and abs(alone["actor/ppo_kl"]) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout, train",
    [
        ("one rank", dict(recompute="full")),
        ("tensors and experts over two ranks", dict(recompute="full")),
        ("three grids, train PP2", dict(recompute="full")),
    ],
)
def test_replayed_steps_are_the_same_on_every_layout_and_with_recomputed_layers(alone, stepped, layout, train):
    found = stepped(layout, True, **train)
    for key in SAME:
        tolerance = 0.2 if key == "routing_replay/replaced" else 1e-4  # a prompt is counted once per micro-batch
        assert found[key] == pytest.approx(alone[key], rel=tolerance, abs=1e-5), key
    assert found["rollout_gap/max"] < 1e-5 and abs(found["actor/kl_loss"]) < 1e-9


@pytest.mark.slow
def test_in_bf16_it_narrows_the_gap(ranks, base):
    found = []
    for replay in (False, True):
        cfg = jobs.job_config(base, config.Layout(), run=dict(dtype="bfloat16"), train=dict(routing_replay=replay))
        (figures,) = ranks.run(step, cfg, False, size=1)
        found.append((figures["rollout_gap/mean"], figures["rollout_gap/max"]))
    print("mean and largest gap without and with routing replay:", found)
    (mean, largest), (mean_replayed, largest_replayed) = found
    assert mean_replayed < 0.8 * mean and largest_replayed < 0.2 * largest
