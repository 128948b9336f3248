"""Gradients that are reduced during the backward pass, against gradients that are reduced after it.

    python -m pytest tests/model/test_overlap.py

Devices do the first, in buckets of 40 million elements; here a CPU does it, in small buckets.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from r1zero import config
from tests import fast, test_policy
from tests.model import cases
from tests.model.cases import grid
from tests.oracles.transformers_model import Oracle

STEPS = 3
"""megatron-core learns in the first step in which order gradients come, and reduces them early from the second on."""
LAYOUTS = {
    "two replicas, tied embedding": ("qwen2_tied", 2, grid()),
    "experts over two ranks": ("deepseek", 2, grid(ep=2)),
    "two pipeline stages, tied embedding": ("qwen2_tied", 2, grid(pp=2)),
}


@contextmanager
def overlapping() -> Iterator[None]:
    from r1zero.model import build

    with mock.patch.object(build, "OVERLAPPING", ("cpu",)), mock.patch.object(build, "BUCKET_ELEMENTS", 2000):
        yield


@contextmanager
def reductions() -> Iterator[list[str]]:
    """What happens, in order: the begin of each bucket's reduction, and the end of each backward pass."""
    from megatron.core.distributed import param_and_grad_buffer

    found: list[str] = []
    groups = param_and_grad_buffer._ParamAndGradBucketGroup
    start, finish = groups.start_grad_sync, groups.finish_grad_sync

    def started(self: Any, **options: Any) -> None:
        found.append("begin")
        start(self, **options)

    def finished(self: Any, **options: Any) -> None:
        found.append("finish")
        finish(self, **options)

    with mock.patch.object(groups, "start_grad_sync", started), mock.patch.object(groups, "finish_grad_sync", finished):
        yield found


def updated(rank: int, oracle: Oracle, place: config.MegatronGrid, overlap: bool) -> tuple[dict, int, int]:
    """Weights after some updates in several micro-batches, by HF name; the buckets of this rank, and how many of them
    were reduced before the last update's backward pass was over."""
    from r1zero import policy
    from r1zero.batch import LossSize, MiniBatch
    from r1zero.division import balance

    with overlapping() if overlap else nullcontext():
        built = cases.build_on(oracle, place)
    cfg = replace(built.cfg, train=config.Train(micro_batch_tokens=165), grpo=config.Grpo(kl_coef=0.1))
    model = policy.Policy(cfg, built.chunks, test_policy.VOCABULARY, [], built.optimizer, built.scheduler)
    every, count = test_policy.samples(True), built.grids.dense.size("dp")
    # The last of several data-parallel ranks has no samples, and runs a dummy for each micro-batch of the others.
    shards = [*balance(every.sizes, max(1, count - 1)), []]
    mine = every.select(torch.tensor(shards[built.grids.dense.coordinate(rank, "dp")], dtype=torch.long))
    size = LossSize(float(every.response_lengths_B.sum()), float(len(every)), 20)
    assert len(model._micro_batches(mine)) > 2
    for _ in range(STEPS):
        with reductions() as order:
            assert not model.update(mine, [MiniBatch(every.ids_B, size)])["skipped"]
    buckets = sum(len(buffer.buckets) for c in built.chunks for buffer in c.buffers + c.expert_parallel_buffers)
    return cases.gathered(built, oracle, lambda parameter: parameter), buckets, order.index("finish")


@pytest.mark.parametrize("name", fast.only(["two replicas, tied embedding"], LAYOUTS))
def test_updates_are_equal_to_the_last_bit(ranks, models, name):
    family, size, place = LAYOUTS[name]
    after, during = (ranks.run(updated, models(family), place, overlap, size=size) for overlap in (False, True))
    for (plain, _, before), (weights, buckets, early) in zip(after, during, strict=True):
        assert before == 0 and early == buckets
        assert [key for key, value in plain.items() if not torch.equal(weights[key], value)] == []
    # megatron-core divides only the first stage: its reduction is the last one
    assert during[0][1] > 3


def save_in_buckets(rank: int, *arguments: Any) -> Any:
    with overlapping():
        return cases.save_then_continue(rank, *arguments)


def test_a_checkpoint_of_several_buckets_is_loaded_in_another_layout(ranks, models, tmp_path):
    """A rank has a part of each bucket, and so of other parameters than with a single one."""
    before = ranks.run(save_in_buckets, models("qwen2"), grid(), "bfloat16", tmp_path, size=2)[0]
    after = ranks.run(cases.load_then_continue, models("qwen2"), grid(tp=2), "bfloat16", tmp_path, size=2)[0]
    states = [key for key in before if key.startswith("middle ")]
    assert len(states) > 100 and [key for key in states if not torch.equal(after[key], before[key])] == []
