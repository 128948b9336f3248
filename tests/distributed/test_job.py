"""The whole step on every kind of layout: engines agree, three grids part, and the layout changes nothing but who does it."""

import dataclasses
from pathlib import Path

import pytest
import torch

from r1zero import config
from r1zero.config import MegatronGrid, VllmGrid
from tests import jobs


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("qwen2"), "qwen2")


@pytest.fixture(scope="module")
def deepseek_v3(tmp_path_factory):
    return jobs.make_base(tmp_path_factory.mktemp("deepseek_v3"), "deepseek_v3")


def grids(train=None, reference=None, rollout=None):
    return config.Layout(train=MegatronGrid(**(train or {})), reference=MegatronGrid(**reference) if reference else None,
                         rollout=VllmGrid(**(rollout or {})))


TP2, PP2, EP2 = ({f"{name}_model_parallel_size": 2} for name in ("tensor", "pipeline", "expert"))
ONE = grids()
# name: (ranks, layout)
DENSE = {
    "two replicas, train DP2": (2, grids()),
    "rollout TP2, train TP2": (2, grids(TP2, rollout={"tensor_parallel_size": 2})),
    "two replicas, train PP2": (2, grids(PP2)),
    "split, rollout TP1": (2, grids({"ranks": "0"}, rollout={"ranks": "1"})),
    "split, train TP2, rollout TP2": (4, grids({"ranks": "0-1"} | TP2, rollout={"ranks": "2-3", "tensor_parallel_size": 2})),
    "three grids of 3": (3, grids({"ranks": "0"}, {"ranks": "1"}, {"ranks": "2"})),
    "three grids of 4": (4, grids({"ranks": "0-1"} | TP2, {"ranks": "2"}, {"ranks": "3"})),
}
EXPERTS = {
    "one rank": (1, grids()),
    "train EP2, two replicas": (2, grids(EP2)),
    "train EP2, rollout TP2 with experts spread": (2, grids(EP2, rollout={"tensor_parallel_size": 2, "enable_expert_parallel": True})),
    "train EP2 TP2, rollout TP2": (2, grids(EP2 | TP2, rollout={"tensor_parallel_size": 2})),
    "split, train EP2, rollout with experts over two engines": (4, grids({"ranks": "0-1"} | EP2, rollout={
        "ranks": "2-3", "data_parallel_size": 2, "enable_expert_parallel": True})),
}


def steps(rank, cfg, count):
    """Figures of `count` steps, the tokens that this rank's engine sampled in the first, and what this rank holds."""
    def use(trainer):
        seen = []
        generate = trainer._generate
        trainer._generate = lambda iteration: seen.append(generate(iteration)) or seen[-1]
        trainer.sync.push(trainer.roles.chunks, trainer.roles.engine)
        figures = [trainer.step(i) for i in range(1, count + 1)]
        tokens = {(s.prompts[r.prompt].index, r.sample): r.token_ids for s in seen if s for r in s.responses}
        roles = trainer.roles
        return figures, tokens, {"engine": roles.engine is not None, "policy": roles.policy is not None,
                                 "reference": roles.reference is not None or roles.original is not None}
    return jobs.with_trainer(rank, cfg, use)


def tokens_of(results):
    """Prompt and sample -> tokens, from all engines; tensor-parallel peers must agree."""
    every = {}
    for _, tokens, _ in results:
        for key, value in tokens.items():
            assert every.setdefault(key, value) == value
    return every


@pytest.fixture(scope="module")
def alone(ranks, qwen2):
    """Three steps of the dense model in a world of one."""
    return ranks.run(steps, jobs.job_config(qwen2, ONE), 3, size=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_dense_engines_agree_after_every_update_and_the_layout_changes_neither_tokens_nor_metrics(ranks, qwen2, alone, name):
    size, layout = DENSE[name]
    results = ranks.run(steps, jobs.job_config(qwen2, layout), 3, size=size)
    for figures in results[0][0]:
        assert figures["rollout_gap/max"] < 1e-5
    if layout.rollout.tensor_parallel_size == 1:
        assert tokens_of(results) == tokens_of(alone)
    for one, many in zip(alone[0][0], results[0][0], strict=True):
        for key in ("grpo/rewards/mean", "response_length/mean", "actor/pg_loss", "actor/kl_loss", "actor/entropy", "grad_norm"):
            assert many[key] == pytest.approx(one[key], rel=2e-4, abs=1e-5), key
