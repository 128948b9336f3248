"""Micro-batches, mini-batches and shards, against plain lists."""

from hypothesis import given, settings
from hypothesis import strategies as st

from r1zero.division import (
    ATTENDED,
    SampleSize,
    balance,
    count_tokens,
    micro_batches,
    mini_batches,
    pieces,
    spread,
    surely_fit,
)

# Groups: the length of the prompt, and those of the responses to it.
LARGE_GROUPS = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(1, 50), min_size=1, max_size=9)), max_size=12
)


def sizes_of(groups):
    return [
        SampleSize(group, prompt, response)
        for group, (prompt, responses) in enumerate(groups)
        for response in responses
    ]


@given(LARGE_GROUPS, st.integers(50, 200), st.integers(0, 5), st.booleans())
def test_micro_batches_keep_to_the_budget_and_cover_every_sample_once_however_far_they_are_spread(
    groups, budget, more, together
):
    sizes = sizes_of(groups if together else [(prompt, [r]) for prompt, rs in groups for r in rs])
    found = micro_batches(sizes, budget)
    assert sorted(i for g in found for i in g) == list(range(len(sizes)))
    for g in found:
        # Neighbours share the prompt: the tokens of the pack are those of its pieces.
        assert count_tokens(sizes, g) == sum(
            sizes[i].response + (sizes[i].prompt if not k or sizes[g[k - 1]].group != sizes[i].group else 0)
            for k, i in enumerate(g)
        )
        assert count_tokens(sizes, g) <= budget or len(g) == 1
        assert sum(sizes[i].prompt + sizes[i].response for i in g) <= ATTENDED * budget or len(g) == 1
    assert (
        len({(k, sizes[i].group) for k, g in enumerate(found) for i in g}) <= len(found) + len(groups) or not together
    )
    count = max(1, len(found) + more)  # a rank without samples runs one empty micro-batch
    wider = spread(found, count)
    assert len(wider) == count and sorted(i for g in wider for i in g) == list(range(len(sizes)))


def test_micro_batches_of_samples_alone_are_filled_from_the_shortest_on():
    sizes = sizes_of([(2, [n]) for n in (9, 1, 4, 30, 3)])
    assert micro_batches(sizes, 16) == [[1, 4, 2], [0], [3]]


def test_a_group_that_does_not_fit_is_continued_with_its_prompt_in_the_next_micro_batch():
    sizes = sizes_of([(10, [5, 5, 5, 5]), (3, [2])])
    assert micro_batches(sizes, 20) == [[4, 0], [1, 2], [3]]
    assert micro_batches(sizes, 25) == [[4, 0, 1], [2, 3]]
    assert [count_tokens(sizes, g) for g in micro_batches(sizes, 35)] == [35]


def test_attention_over_long_prompts_bounds_a_micro_batch_too():
    sizes = sizes_of([(100, [1] * 8)])
    assert [len(g) for g in micro_batches(sizes, 202)] == [4, 4]


@given(st.integers(1, 60), st.integers(1, 8), st.text(max_size=5))
def test_mini_batches_use_every_sample_once_in_an_order_of_the_key(count, parts, key):
    dealt = mini_batches(count, parts, key)
    assert len(dealt) == parts and sorted(i for part in dealt for i in part) == list(range(count))
    assert all(part == sorted(part) for part in dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1 and dealt == mini_batches(count, parts, key)


def test_mini_batches_of_another_epoch_are_others():
    assert mini_batches(16, 4, "1 1 0") != mini_batches(16, 4, "1 1 1")


@given(st.lists(st.integers(1, 50), min_size=4, max_size=60), st.integers(1, 4))
def test_a_deal_of_samples_alone_is_balanced_to_within_the_longest_sample(lengths, shards):
    sizes = sizes_of([(1, [n]) for n in lengths])
    dealt = balance(sizes, shards)
    assert sorted(i for h in dealt for i in h) == list(range(len(lengths))) and all(dealt)
    totals = [sum(lengths[i] + 1 for i in h) for h in dealt]
    assert max(totals) - min(totals) <= max(lengths) + 1


@settings(deadline=None, max_examples=100)
@given(LARGE_GROUPS, st.integers(1, 6))
def test_a_deal_of_groups_uses_every_sample_once_and_no_shard_exceeds_those_of_whole_or_single_samples(groups, shards):
    sizes = sizes_of(groups)
    dealt = balance(sizes, shards)
    assert sorted(i for h in dealt for i in h) == list(range(len(sizes)))
    assert all(h == sorted(h) for h in dealt) and len(dealt) == shards
    largest = max(count_tokens(sizes, h) for h in dealt)
    apart = balance([s._replace(group=i) for i, s in enumerate(sizes)], shards)
    assert largest <= max(sum(sizes[i].prompt + sizes[i].response for i in h) for h in apart)
    assert largest >= count_tokens(sizes, range(len(sizes))) / shards
    groups_alone = [count_tokens(sizes, [i for i, s in enumerate(sizes) if s.group == g]) for g in range(len(groups))]
    assert largest <= sum(groups_alone) / shards + max(groups_alone, default=0)


def test_groups_stay_together_unless_dividing_them_is_faster():
    assert balance(sizes_of([(4, [1, 1, 1])] * 4), 2) == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert balance(sizes_of([(4, [10, 10, 10, 10])]), 2) == [[0, 2], [1, 3]]
    # Whole: 44 and 88 tokens. In halves: 24 + 24 + 24 twice.
    assert sorted(map(len, balance(sizes_of([(4, [10] * 4)] * 3), 2))) == [6, 6]
    assert [len(h) for h in balance(sizes_of([(4, [10] * 4)]), 4)] == [1, 1, 1, 1]


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.data(),
)
def test_a_piece_is_one_micro_batch_of_one_engine_even_if_all_lengths_are_the_largest(
    engines, share, group_size, prompt, response, shared, data
):
    budget = data.draw(st.integers(prompt + response, 8 * (prompt + response) * group_size))
    samples = surely_fit(prompt, response, group_size, budget, shared)
    found = pieces(engines, share, group_size, samples)
    assert [i for piece in found for i in piece] == list(range(engines * share * group_size))

    def packs(numbers):
        return len(
            micro_batches([SampleSize(i // group_size if shared else i, prompt, response) for i in numbers], budget)
        )

    for piece in found:
        assert len({i // (share * group_size) for i in piece}) == 1 and packs(piece) == 1
        assert len({i // group_size for i in piece}) == 1 or len(piece) % group_size == 0
    more = samples + group_size if samples >= group_size else samples + 1
    assert packs(range(more)) > 1, "a piece is as large as it can be"
