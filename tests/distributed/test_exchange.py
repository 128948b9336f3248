"""Samples between grids: what arrives is what was sent, wherever it was made and wherever it is wanted."""

import pytest
import torch

from r1zero import config
from r1zero.batch import Batch
from r1zero.config import MegatronGrid, VllmGrid
from r1zero.distributed import layout
from r1zero.distributed.exchange import Exchange

SAMPLES = 16
LAYOUTS = {
    "colocated, rollout TP2": config.Layout(rollout=VllmGrid(tensor_parallel_size=2)),
    "colocated, train TP2": config.Layout(train=MegatronGrid(tensor_model_parallel_size=2)),
    "colocated, train PP2": config.Layout(train=MegatronGrid(pipeline_model_parallel_size=2)),
    "three grids": config.Layout(
        train=MegatronGrid(ranks="0-1", tensor_model_parallel_size=2),
        reference=MegatronGrid(ranks="2"),
        rollout=VllmGrid(ranks="3"),
    ),
    "reference PP2": config.Layout(
        train=MegatronGrid(ranks="0"),
        reference=MegatronGrid(ranks="1-2", pipeline_model_parallel_size=2),
        rollout=VllmGrid(ranks="3"),
    ),
}


CHOSEN = (1, 3)
"""Layers with experts, and experts per token: an odd number of int16."""


def samples(ids):
    """Sample i, made anywhere, is the same."""
    prompts, responses = [3 + i // 2 % 4 for i in ids], [1 + (7 * i) % 5 for i in ids]
    tokens = [1000 * i + t for i, p, r in zip(ids, prompts, responses, strict=True) for t in range(p + r)]
    return Batch(
        ids_B=torch.tensor(ids),
        groups_B=torch.tensor([i // 2 for i in ids]),
        prompt_lengths_B=torch.tensor(prompts),
        response_lengths_B=torch.tensor(responses),
        tokens_T=torch.tensor(tokens),
        advantages_B=torch.tensor([float(i) for i in ids]),
        scored_B=torch.tensor([float(i % 3 > 0) for i in ids]),
        rollout_logprobs_R=torch.tensor([i + t / 10 for i, r in zip(ids, responses, strict=True) for t in range(r)]),
        ref_logprobs_R=torch.empty(0),
        experts_T=(torch.tensor(tokens)[:, None, None] % 400 + torch.arange(-1, CHOSEN[1] - 1)).to(torch.int16),
    )


def send_everything(rank, cfg):
    grids = layout.carve(cfg, 4)
    exchange = Exchange(grids, rank, torch.device("cpu"))
    mine, share = None, SAMPLES // grids.engines
    if rank in grids.rollout:
        first = grids.engine_of(rank) * share
        mine = samples(list(range(first, first + share)))
    lengths = exchange.gather_lengths(mine, exchange.shares(SAMPLES))
    batch = exchange.to_grid(mine, lengths, grids.train.dense, CHOSEN)
    if grids.reference:
        theirs = exchange.to_grid(mine, lengths, grids.reference.dense, CHOSEN)
        doubled = theirs.rollout_logprobs_R * 2 if theirs else None
        came = exchange.regrid(
            doubled, lengths, exchange.shards(lengths, grids.reference.dense), grids.reference.dense, grids.train.dense
        )
        assert (came is None) == (batch is None)
        assert batch is None or torch.equal(came, batch.rollout_logprobs_R * 2)
    return lengths.loss_tokens, None if batch is None else vars(batch)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_data_parallel_rank_gets_its_hand_of_samples_whole_and_all_hands_make_the_batch(ranks, name):
    results = ranks.run(send_everything, LAYOUTS[name], size=4)
    grids = layout.carve(LAYOUTS[name], 4)
    everything = samples(list(range(SAMPLES)))
    assert {tokens for tokens, _ in results} == {float((everything.response_lengths_B * everything.scored_B).sum())}
    shards = {}
    for rank, (_, batch) in enumerate(results):
        assert (batch is None) == (rank not in grids.train.dense)
        if batch is None:
            continue
        expected = vars(samples(batch["ids_B"].tolist()))
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
        shards.setdefault(grids.train.dense.coordinate(rank, "dp"), []).append(tuple(batch["ids_B"].tolist()))
    assert all(len(set(copies)) == 1 for copies in shards.values())
    assert sorted(i for copies in shards.values() for i in copies[0]) == list(range(SAMPLES))
