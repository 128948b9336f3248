"""Packing, dealing and ragged selection, against plain lists."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.batch import Batch, balance, micro_batches, mini_batches, pack, spread

LENGTHS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=12)


def make(lengths):
    """Samples whose tokens and logprobs tell where they come from."""
    prompts, responses = torch.tensor([p for p, _ in lengths]), torch.tensor([r for _, r in lengths])
    return Batch(
        ids_B=torch.arange(len(lengths)),
        prompt_lengths_B=prompts,
        response_lengths_B=responses,
        tokens_T=torch.tensor([100 * i + t for i, (p, r) in enumerate(lengths) for t in range(p + r)]),
        advantages_B=torch.arange(len(lengths)).float(),
        scored_B=torch.ones(len(lengths)),
        rollout_logprobs_R=torch.tensor([100.0 * i + t for i, (p, r) in enumerate(lengths) for t in range(p, p + r)]),
        ref_logprobs_R=torch.empty(0),
    )


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.randoms())
def test_a_pack_predicts_each_response_token_from_the_row_before_it(lengths, random):
    batch = make(lengths)
    chosen = random.sample(range(len(lengths)), random.randint(0, len(lengths)))
    p = pack(batch, torch.tensor(chosen, dtype=torch.long))
    assert len(p.tokens) == sum(p.lengths) > 0
    assert p.targets.tolist() == [100 * i + t for i in chosen for t in range(lengths[i][0], sum(lengths[i]))]
    assert p.tokens[p.rows + 1].tolist() == p.targets.tolist()
    assert batch.rollout_logprobs_R[p.response_index].tolist() == [float(t) for t in p.targets]


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.randoms())
def test_select_takes_whole_samples_in_the_given_order(lengths, random):
    chosen = random.sample(range(len(lengths)), random.randint(1, len(lengths)))
    got = make(lengths).select(torch.tensor(chosen))
    assert got.tokens_T.tolist() == [100 * i + t for i in chosen for t in range(sum(lengths[i]))]
    assert got.rollout_logprobs_R.tolist() == [
        100.0 * i + t for i in chosen for t in range(lengths[i][0], sum(lengths[i]))
    ]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 200), st.integers(0, 5))
def test_micro_batches_keep_to_the_budget_and_cover_every_sample_once_however_far_they_are_spread(
    lengths, budget, more
):
    groups = micro_batches(lengths, budget)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in g) <= budget for g in groups)
    count = max(1, len(groups) + more)  # a rank without samples runs one empty micro-batch
    wider = spread(groups, count)
    assert len(wider) == count and sorted(i for g in wider for i in g) == list(range(len(lengths)))


@given(st.integers(1, 60), st.integers(1, 8), st.text(max_size=5))
def test_mini_batches_use_every_sample_once_in_an_order_of_the_key(count, parts, key):
    dealt = mini_batches(count, parts, key)
    assert len(dealt) == parts and sorted(i for part in dealt for i in part) == list(range(count))
    assert all(part == sorted(part) for part in dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1 and dealt == mini_batches(count, parts, key)


def test_mini_batches_of_another_epoch_are_others():
    assert mini_batches(16, 4, "1 1 0") != mini_batches(16, 4, "1 1 1")


@given(st.lists(st.integers(1, 50), min_size=4, max_size=60), st.integers(1, 4))
def test_a_deal_is_balanced_to_within_the_longest_sample(lengths, shards):
    dealt = balance(lengths, shards)
    assert sorted(i for h in dealt for i in h) == list(range(len(lengths))) and all(dealt)
    totals = [sum(lengths[i] for i in h) for h in dealt]
    assert max(totals) - min(totals) <= max(lengths)
