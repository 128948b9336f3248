"""A loss or gradient that is not finite: nothing is learned from it on any rank, it is counted and kept, and at last
the run stops."""

import dataclasses
import json
import math

import pytest
import torch

from r1zero import config
from r1zero.config import CollectiveError, MegatronGrid, Optimizer
from r1zero.guard.skipped import SkipLimit
from tests import jobs

POISONED = {2: math.inf, 4: math.nan, 5: math.inf}
"""Iteration -> advantage that one sample of one rank gets in it."""


def state(trainer):
    """All that an update changes, as bytes: weights, master weights, moments, their steps, and the schedule."""
    policy = trainer.roles.policy
    tensors = [p.detach() for chunk in policy.chunks for p in chunk.parameters()]
    for part in policy.optimizer.chained_optimizers:
        for group in part.optimizer.param_groups:
            tensors += [p.detach() for p in group["params"]]
            tensors += [x for p in group["params"] for x in part.optimizer.state[p].values() if torch.is_tensor(x)]
    return [t.clone() for t in tensors], policy.scheduler.state_dict(), [g["lr"] for g in policy.optimizer.param_groups]


def same(a, b):
    return len(a[0]) == len(b[0]) and all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1:] == b[1:]


def poisoned_run(rank, cfg):
    """(for each iteration whether the update changed nothing, what ended the run)."""

    def use(trainer):
        to_grid, update, unchanged = trainer.exchange.to_grid, trainer.roles.update, []

        def poison(mine, census, *where):
            batch = to_grid(mine, census, *where)
            value = POISONED.get(len(unchanged) + 1)
            if value is not None and rank == 1 and census.response_lengths_B.numel() > 8:  # the gate's texts are fewer
                batch.advantages_B[0] = value
            return batch

        def watched(*args):
            before = state(trainer)
            found = update(*args)
            unchanged.append(same(before, state(trainer)))
            return found

        trainer.exchange.to_grid, trainer.roles.update = poison, watched
        try:
            trainer.run()
            return unchanged, None
        except CollectiveError as error:
            return unchanged, str(error)

    return jobs.with_trainer(rank, cfg, use)


@pytest.mark.slow
def test_an_update_on_numbers_that_are_none_changes_nothing_is_counted_and_kept_and_two_in_a_row_end_the_run(
    ranks, tmp_path
):
    folder = jobs.make_base(tmp_path, "deepseek_v3")  # dense weights and experts have optimizers of their own
    grids = config.Layout(train=MegatronGrid(expert_model_parallel_size=2))
    cfg = jobs.job_config(
        folder,
        grids,
        run=dict(iterations=8),
        optimizer=dict(lr_warmup_iterations=10, max_skipped=2),
        grpo=dict(kl_coef=0.05),
    )
    results = ranks.run(poisoned_run, dataclasses.replace(cfg, parity=config.Parity(prompts=1, tokens=4)), size=2)
    for unchanged, error in results:
        assert unchanged == [False, True, False, True, True]
        assert "2 updates in a row" in error and "optimizer.max_skipped = 2" in error
    lines = jobs.metrics_of(cfg)
    assert [line["update/skipped"] for line in lines] == [0, 1, 0, 1, 1]
    assert [line["grad_norm"] is None for line in lines] == [False, True, False, True, True]  # JSON has no infinity
    # The schedule did not run on: the third iteration has the second's rate.
    rates = [line["actor/lr"] for line in lines]
    assert rates[0] < rates[1] == rates[2] < rates[3] == rates[4]
    kept = sorted(p.name for p in (folder / "runs" / "job" / "skipped").iterdir())
    assert kept == sorted(f"iteration_{i}_rank_{r}.pt" for i in POISONED for r in (0, 1))
    batches = [
        torch.load(folder / "runs" / "job" / "skipped" / f"iteration_2_rank_{r}.pt", weights_only=True) for r in (0, 1)
    ]
    assert [bool(b["advantages_B"].isfinite().all()) for b in batches] == [True, False]
    for b in batches:
        assert (
            len(b["logprobs_R"])
            == len(b["rollout_logprobs_R"])
            == len(b["ref_logprobs_R"])
            == int(b["response_lengths_B"].sum())
        )
        assert len(b["tokens_T"]) == int(b["response_lengths_B"].sum() + b["prompt_lengths_B"].sum())
        assert (b["logprobs_R"] - b["rollout_logprobs_R"]).abs().max() < 1e-4  # those of the weights that sampled
    assert json.loads((folder / "runs" / "job" / "metrics.jsonl").read_bytes().splitlines()[0])["update/empty"] == 0


def test_skipped_updates_end_the_run_only_in_a_row_and_empty_iterations_neither_count_nor_clear(tmp_path):
    patience = SkipLimit(Optimizer(max_skipped=2).max_skipped, tmp_path)
    skipped, fine, empty = (
        {"update/skipped": 1.0, "update/empty": 0.0},
        {"update/skipped": 0.0, "update/empty": 0.0},
        {"update/skipped": 0.0, "update/empty": 1.0},
    )
    for figures in (skipped, fine, empty, skipped, empty):
        patience.see(figures)
    with pytest.raises(CollectiveError, match="2 updates in a row"):
        patience.see(skipped)
