"""The data that passes between the phases of a step: prompts, responses, the ragged training batch, micro-batches.

Shapes: P prompts, G responses per prompt, B = P * G samples, T tokens (prompts and responses), R response tokens.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

ATTENDED = 2
"""Largest number of tokens that the sequences of a micro-batch have in total when each is counted with its prompt,
relative to the budget. Attention makes queries, keys and values for all of them."""


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt of the data set, with what grading needs."""

    row: int
    """Index of its row in the prepared data."""
    token_ids: tuple[int, ...]
    label: str
    text: str
    additional: dict[str, str | None] = field(default_factory=dict, hash=False)
    """The columns of the row that dataset_additional_keys kept, for reward rules that the user wrote."""
    dataset: str = ""
    """The name of its source, if the data has several."""


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    prompt: int
    """Index of its prompt in the list given to `generate`."""
    sample: int
    """0 .. G - 1."""
    token_ids: list[int]
    """Includes the stop token if one was sampled."""
    logprobs: list[float]
    """Logprob of each token at the sampling temperature, from the engine."""
    finish_reason: Literal["stop", "length"]
    experts: Tensor | None = field(default=None, compare=False)
    """The experts that the engine chose for the tokens of prompt and response, without the last one, which it did not
    compute: (tokens, L, K) int16 for L layers with experts and K experts per token. None without
    train.routing_replay."""


@dataclass(frozen=True)
class Batch:
    """Samples as flat ragged tensors, with only the fields that training needs."""

    ids_B: Tensor
    """Number of each sample within the iteration: prompt number * G + sample number. int64."""
    groups_B: Tensor
    """Samples with equal numbers have the same prompt, whose tokens they share in a pack. int64."""
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    tokens_T: Tensor
    """The prompt of each sample, followed by its response. int64."""
    advantages_B: Tensor
    scored_B: Tensor
    """1.0 if the tokens of the sample are in the loss; 0.0 if it was not scored, or is left out by
    `grpo.overlong = "mask"`. float32."""
    rollout_logprobs_R: Tensor
    """Computed by the engine while it sampled. float32."""
    ref_logprobs_R: Tensor
    """Computed by the reference model. float32; empty if there is no reference."""
    old_logprobs_R: Tensor = field(default_factory=lambda: torch.empty(0))
    """Logprobs of the old policy, the denominator of the importance ratio. float32; empty if they equal the policy's
    own, as in the only update of an iteration."""
    experts_T: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int16))
    """(T, L, K) int16: the experts that the engine chose for each token in each layer with experts, or -1 where the
    trainer is to choose; empty if it is to choose for all tokens."""

    @property
    def lengths_B(self) -> Tensor:
        """Number of tokens of each sample, prompt and response."""
        return self.prompt_lengths_B + self.response_lengths_B

    @property
    def sizes(self) -> "list[SampleSize]":
        """The number of tokens of each sample, for the functions that group samples."""
        return sample_sizes(self.groups_B, self.prompt_lengths_B, self.response_lengths_B)

    def __len__(self) -> int:
        return len(self.ids_B)

    def select(self, indices: Tensor) -> "Batch":
        """The samples at `indices`, in that order."""

        def ragged(flat: Tensor, lengths: Tensor) -> Tensor:
            return flat if not len(flat) else flat[ragged_index(lengths, indices)]

        return Batch(
            **{f.name: getattr(self, f.name)[indices] for f in fields(self) if f.name.endswith("_B")},
            tokens_T=ragged(self.tokens_T, self.lengths_B),
            rollout_logprobs_R=ragged(self.rollout_logprobs_R, self.response_lengths_B),
            ref_logprobs_R=ragged(self.ref_logprobs_R, self.response_lengths_B),
            old_logprobs_R=ragged(self.old_logprobs_R, self.response_lengths_B),
            experts_T=ragged(self.experts_T, self.lengths_B),
        )


class SampleSize(NamedTuple):
    """The tokens of one sample. The prompt is computed once for all samples of a group that are packed together."""

    group: int
    prompt: int
    """Number of tokens of the prompt, equal in all samples of the group."""
    response: int
    """Number of tokens of the response."""


def sample_sizes(groups_B: Tensor, prompt_lengths_B: Tensor, response_lengths_B: Tensor) -> list[SampleSize]:
    """Returns the sizes of B samples from their tensors."""
    columns = groups_B.tolist(), prompt_lengths_B.tolist(), response_lengths_B.tolist()
    return [SampleSize(*row) for row in zip(*columns, strict=True)]


class LossSize(NamedTuple):
    """The denominators of the loss of one update: sums over all ranks."""

    tokens: float
    """Number of response tokens in the loss."""
    samples: float
    """Number of samples in the loss."""
    longest: int
    """Largest number of tokens that a response may have."""


class MiniBatch(NamedTuple):
    """The samples of one update, on all ranks."""

    ids_B: Tensor
    """Their numbers within the iteration, in ascending order. int64."""
    size: LossSize


def ragged_index(lengths_B: Tensor, indices: Tensor) -> Tensor:
    """Returns the positions of the elements of the rows `indices`, row by row.

    The positions are those in a flat tensor whose rows have the lengths `lengths_B`.
    """
    starts, taken = lengths_B.cumsum(0) - lengths_B, lengths_B[indices]
    offsets = taken.cumsum(0) - taken
    return torch.arange(int(taken.sum()), device=taken.device) + (starts[indices] - offsets).repeat_interleave(taken)


@dataclass(frozen=True)
class MicroBatch:
    """Samples packed end to end, without padding.

    Neighbouring samples of one group form a piece: the prompt once, followed by their responses. A sequence of the pack
    is the prompt with the first response of a piece, or one further response, which continues the same prompt.
    """

    indices: Tensor
    """Positions of its samples in the batch."""
    lengths: list[int]
    """Number of tokens of each sequence in the pack."""
    shared: list[int]
    """Number of tokens that each sequence continues: those of the prompt, or 0 for the first sequence of a piece."""
    tokens: Tensor
    """(t,) token ids. int64."""
    rows: Tensor
    """(r,) rows of the hidden states that predict the response tokens. Each is the row before its token, or the last
    row of the prompt, which predicts the first token of every response of its piece."""
    targets: Tensor
    """(r,) ids of the response tokens."""
    response_index: Tensor
    """(r,) position of each response token among the R response tokens of the batch."""
    experts: Tensor | None = None
    """(t, L, K) experts of the tokens, as in `Batch.experts_T`; None if the trainer is to choose all."""


def pack(batch: Batch, indices: Tensor) -> MicroBatch:
    """Pack the samples at `indices` end to end. Neighbours of one group share their prompt.

    With no samples, returns a one-token dummy that predicts nothing, so that this rank still takes part in the
    collectives.
    """
    if not len(indices):
        return MicroBatch(indices, [1], [0], batch.tokens_T.new_zeros(1), indices, indices, indices)
    prompts, responses, groups = (
        x[indices] for x in (batch.prompt_lengths_B, batch.response_lengths_B, batch.groups_B)
    )
    begins_piece = torch.cat([groups.new_ones(1, dtype=torch.bool), groups[1:] != groups[:-1]])
    shared = prompts.masked_fill(begins_piece, 0)
    lengths = prompts + responses - shared
    starts = lengths.cumsum(0) - lengths
    unshared = ragged_index(batch.lengths_B, indices)
    alone = prompts + responses
    taken = unshared[_positions(alone) >= _each(shared, alone)]
    tokens = batch.tokens_T[taken]
    within = _positions(responses)
    where = _each(starts + lengths - responses, responses) + within
    prompt_ends = starts.masked_fill(~begins_piece, 0).cummax(0).values + prompts - 1
    rows = torch.where(within == 0, _each(prompt_ends, responses), where - 1)
    return MicroBatch(
        indices,
        lengths.tolist(),
        shared.tolist(),
        tokens,
        rows,
        tokens[where],
        ragged_index(batch.response_lengths_B, indices),
        batch.experts_T[taken] if len(batch.experts_T) else None,
    )


def _each(values_N: Tensor, lengths_N: Tensor) -> Tensor:
    """Returns the value of each row, once for every element of the row."""
    return values_N.repeat_interleave(lengths_N)


def _positions(lengths_N: Tensor) -> Tensor:
    """Returns the position of each element within its row: 0 .. length - 1, row by row."""
    return torch.arange(int(lengths_N.sum())) - _each(lengths_N.cumsum(0) - lengths_N, lengths_N)


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
