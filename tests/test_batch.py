"""Packing and ragged selection, against plain lists."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.batch import Batch, pack

# Groups: the length of the prompt, and those of the responses to it.
GROUPS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=5)), min_size=1, max_size=6
)


def table(groups):
    """(group, prompt length, response length) of each sample."""
    return [(g, prompt, response) for g, (prompt, responses) in enumerate(groups) for response in responses]


def make(groups):
    """Samples whose tokens and logprobs tell where they come from."""
    rows = table(groups)
    columns = [torch.tensor([row[k] for row in rows]) for k in range(3)]
    tokens = torch.tensor([t for i in range(len(rows)) for t in tokens_of(rows, i)])
    return Batch(
        ids_B=torch.arange(len(rows)),
        groups_B=columns[0],
        prompt_lengths_B=columns[1],
        response_lengths_B=columns[2],
        tokens_T=tokens,
        advantages_B=torch.arange(len(rows)).float(),
        scored_B=torch.ones(len(rows)),
        rollout_logprobs_R=torch.tensor([float(t) for i, (*_, r) in enumerate(rows) for t in response_of(i, r)]),
        ref_logprobs_R=torch.empty(0),
        experts_T=tokens[:, None, None].expand(-1, 2, 1).to(torch.int16),
    )


def response_of(i, length):
    """Tokens of the response of sample i, negative, unlike those of prompts."""
    return [-100 * i - t for t in range(1, length + 1)]


def tokens_of(rows, i):
    group, prompt, response = rows[i]
    return [*(1000 * group + t for t in range(prompt)), *response_of(i, response)]


@settings(deadline=None, max_examples=100)
@given(GROUPS, st.randoms())
def test_a_pack_holds_a_prompt_once_for_neighbours_and_predicts_each_response_token_from_the_one_before_it(
    groups, random
):
    batch, rows = make(groups), table(groups)
    chosen = random.sample(range(len(rows)), random.randint(0, len(rows)))
    if random.random() < 0.7:
        chosen.sort()
    p = pack(batch, torch.tensor(chosen, dtype=torch.long))
    assert len(p.tokens) == sum(p.lengths) > 0 and len(p.lengths) == len(p.shared) == max(1, len(chosen))
    assert p.targets.tolist() == [t for i in chosen for t in response_of(i, rows[i][2])]
    assert batch.rollout_logprobs_R[p.response_index].tolist() == [float(t) for t in p.targets]
    assert p.experts is None if not chosen else torch.equal(p.experts[:, 1, 0], p.tokens.to(torch.int16))
    before = [t for i in chosen for t in tokens_of(rows, i)[rows[i][1] - 1 : -1]]
    assert p.tokens[p.rows].tolist() == before
    # Each sequence, with the tokens that it continues, is the sample alone.
    start = origin = 0
    for i, own, shared in zip(chosen, p.lengths, p.shared, strict=False):
        origin = origin if shared else start
        assert [*p.tokens[origin : origin + shared], *p.tokens[start : start + own]] == tokens_of(rows, i)
        start += own
    neighbours = [i and rows[chosen[i]][0] == rows[chosen[i - 1]][0] for i in range(len(chosen))]
    assert [n > 0 for n in p.shared] == [bool(n) for n in neighbours] or not chosen


@settings(deadline=None, max_examples=60)
@given(GROUPS, st.randoms())
def test_select_takes_whole_samples_in_the_given_order(groups, random):
    rows = table(groups)
    chosen = random.sample(range(len(rows)), random.randint(1, len(rows)))
    got = make(groups).select(torch.tensor(chosen))
    assert got.tokens_T.tolist() == [t for i in chosen for t in tokens_of(rows, i)]
    assert got.rollout_logprobs_R.tolist() == [float(t) for i in chosen for t in response_of(i, rows[i][2])]
    assert torch.equal(got.experts_T[:, 1, 0], got.tokens_T.to(torch.int16))
    assert got.groups_B.tolist() == [rows[i][0] for i in chosen]
    assert got.sizes == [rows[i] for i in chosen]
