"""How samples are divided: over data-parallel ranks, into the mini-batches of an iteration, and into micro-batches.

Only numbers of tokens decide, so this needs neither torch nor the samples, and `--plan` uses it as well.
"""

import heapq
import random
from collections.abc import Sequence
from itertools import count as count_up
from typing import NamedTuple

ATTENDED = 2
"""Largest number of tokens that the sequences of a micro-batch have in total when each is counted with its prompt,
relative to the budget. Attention makes queries, keys and values for all of them."""


class SampleSize(NamedTuple):
    """The tokens of one sample. The prompt is computed once for all samples of a group that are packed together."""

    group: int
    prompt: int
    """Number of tokens of the prompt, equal in all samples of the group."""
    response: int
    """Number of tokens of the response."""


def micro_batches(sizes: Sequence[SampleSize], budget: int) -> list[list[int]]:
    """Group samples so that those of a group are neighbours, with at most `budget` tokens in a micro-batch.

    A prompt counts once in each micro-batch that has a response to it, and a group is continued in the next micro-batch
    when it does not fit. A sample that is longer than the budget gets a micro-batch of its own. Groups of similar size
    are neighbours. Returns indices into `sizes`.
    """
    found: list[list[int]] = []
    room = attended = 0
    for members in sorted(_groups(sizes), key=lambda members: (count_tokens(sizes, members), min(members))):
        prompt_is_there = False
        for i in members:
            alone = sizes[i].prompt + sizes[i].response
            needed = sizes[i].response if prompt_is_there else alone
            if not found or needed > room or alone > attended:
                found.append([])
                room, attended, needed = budget, ATTENDED * budget, alone
            found[-1].append(i)
            prompt_is_there = True
            room, attended = room - needed, attended - alone
    return found


def pieces(engines: int, share: int, group_size: int, samples: int) -> list[range]:
    """Returns the samples of all engines, group after group, cut into pieces of at most `samples`.

    share: number of groups of each engine. A piece is some whole groups of one engine, or a part of one group if
    `samples` is less than a group.
    """
    of_engine, step = share * group_size, samples
    if samples >= group_size:
        step, spans = samples // group_size * group_size, [(e * of_engine, of_engine) for e in range(engines)]
    else:
        spans = [(group * group_size, group_size) for group in range(engines * share)]
    return [range(at, min(at + step, first + n)) for first, n in spans for at in range(first, first + n, step)]


def surely_fit(prompt: int, response: int, group_size: int, budget: int, shared: bool) -> int:
    """Returns the number of samples that fit one micro-batch whatever their lengths are: those of whole groups, or
    fewer than a group has, and at least one.

    prompt, response: largest numbers of tokens. budget: as in `micro_batches`. shared: whether the samples of a group
    share their prompt.
    """

    def fits(count: int) -> bool:
        prompts = -(-count // group_size) if shared else count
        return prompts * prompt + count * response <= budget and count * (prompt + response) <= ATTENDED * budget

    groups = next(n for n in count_up(1) if not fits(n * group_size)) - 1
    return groups * group_size or max((n for n in range(1, group_size) if fits(n)), default=1)


def count_tokens(sizes: Sequence[SampleSize], indices: Sequence[int]) -> int:
    """Returns the tokens of a pack of samples, in which each prompt occurs once."""
    prompts = {sizes[i].group: sizes[i].prompt for i in indices}
    return sum(prompts.values()) + sum(sizes[i].response for i in indices)


def _groups(sizes: Sequence[SampleSize]) -> list[list[int]]:
    """Returns the samples of each group, from the shortest response to the longest."""
    found: dict[int, list[int]] = {}
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i].response, i)):
        found.setdefault(sizes[i].group, []).append(i)
    return list(found.values())


def mini_batches(count: int, parts: int, key: str) -> list[list[int]]:
    """Returns samples 0 .. count - 1 divided into `parts` parts, in an order that `key` seeds.

    The sizes of the parts differ by at most one, and each part is in ascending order. The order depends only on the
    key, so every rank and every resumed run computes the same one.
    """
    generator = random.Random(key)  # Python guarantees the same sequence across versions only for random()
    order = sorted(range(count), key=[generator.random() for _ in range(count)].__getitem__)
    return [sorted(order[part::parts]) for part in range(parts)]


def spread(groups: list[list[int]], count: int) -> list[list[int]]:
    """Split groups in half, the fullest first, until there are `count` of them (at least one).

    Ranks that share a collective must run the same number of micro-batches. If there are too few samples, some groups
    are empty. A prompt whose responses are split is computed in both halves.
    """
    groups = list(groups) or [[]]  # a rank without samples still takes part in the collectives
    while len(groups) < count:
        fullest = max(range(len(groups)), key=lambda g: len(groups[g]))
        group = groups[fullest]
        if len(group) < 2:
            groups.append([])
            continue
        groups[fullest : fullest + 1] = [group[: len(group) // 2], group[len(group) // 2 :]]
    return groups


def balance(sizes: Sequence[SampleSize], count: int) -> list[list[int]]:
    """Divide samples into `count` shards with about as many tokens each, where a shard computes each prompt once.

    All groups are kept whole, or cut into 2, 4, 8, ... pieces, whichever gives the smallest largest shard. Every shard
    is in ascending order.
    """
    groups = _groups(sizes)
    cuts, largest = [1], max(map(len, groups), default=1)
    while cuts[-1] < largest:
        cuts.append(2 * cuts[-1])
    dealt = [
        _deal(sizes, [group[k::cut] for group in groups for k in range(min(cut, len(group)))], count) for cut in cuts
    ]
    return min(dealt, key=lambda shards: max(count_tokens(sizes, shard) for shard in shards))


def _deal(sizes: Sequence[SampleSize], pieces: list[list[int]], count: int) -> list[list[int]]:
    """Divide pieces into `count` shards: each, from the largest to the smallest, goes to the shard with the fewest
    tokens. No shard is empty unless there are fewer pieces than shards."""
    tokens_of = [count_tokens(sizes, piece) for piece in pieces]
    heap = [(0, 0, shard) for shard in range(count)]
    shards: list[list[int]] = [[] for _ in range(count)]
    for p in sorted(range(len(pieces)), key=lambda p: (-tokens_of[p], min(pieces[p]))):
        tokens, samples, shard = heapq.heappop(heap)
        shards[shard] += pieces[p]
        heapq.heappush(heap, (tokens + tokens_of[p], samples + len(pieces[p]), shard))
    return [sorted(shard) for shard in shards]
