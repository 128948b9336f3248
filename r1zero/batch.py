"""The data that passes between the stages of a step, with shapes: prompts, responses, the ragged training batch,
micro-batches.

Legend: P prompts, G responses per prompt, B = P * G samples, T tokens (prompts and responses), R response tokens.
"""

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    row: int
    """Its row in the prepared data."""
    token_ids: tuple[int, ...]
    label: str
    text: str
    additional: dict[str, str | None] = field(default_factory=dict, hash=False)
    """The columns of the row that dataset_additional_keys kept, for the user's own reward rules."""


@dataclass(frozen=True)
class Response:
    prompt: int
    """Position of its prompt in the list given to `generate`."""
    sample: int
    """0 .. G - 1."""
    token_ids: list[int]
    """Includes the stop token if one was sampled."""
    logprobs: list[float]
    """Of each token at the time it was sampled, at the sampling temperature."""
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Batch:
    """Samples as flat ragged tensors, with only what training needs."""

    ids_B: Tensor
    """Number of each sample within the iteration: prompt number * G + sample number. int64."""
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    tokens_T: Tensor
    """The prompt of each sample, followed by its response. int64."""
    advantages_B: Tensor
    scored_B: Tensor
    """1.0, or 0.0 for a sample that was not scored, or is left out by `grpo.overlong = "mask"`: its tokens are left out
    of the loss. float32."""
    rollout_logprobs_R: Tensor
    """Computed by the engine while sampling. float32."""
    ref_logprobs_R: Tensor
    """Computed by the reference model. float32; empty if there is no reference."""
    old_logprobs_R: Tensor = field(default_factory=lambda: torch.empty(0))
    """Computed by the policy before the first update of the iteration. float32; empty if there is one update only."""

    @property
    def lengths_B(self) -> Tensor:
        return self.prompt_lengths_B + self.response_lengths_B

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
        )


class LossSize(NamedTuple):
    """What the loss of one update is divided by: sums over all ranks."""

    tokens: float
    """Response tokens in the loss."""
    samples: float
    """Samples in the loss."""
    longest: int
    """Most tokens that a response may have."""


class MiniBatch(NamedTuple):
    """The samples of one update, on all ranks."""

    ids_B: Tensor
    """Their numbers within the iteration, ascending. int64."""
    size: LossSize


def ragged_index(lengths_B: Tensor, indices: Tensor) -> Tensor:
    """Positions of the elements of the rows `indices`, row by row, in a flat tensor whose rows have lengths
    `lengths_B`."""
    starts, taken = lengths_B.cumsum(0) - lengths_B, lengths_B[indices]
    offsets = taken.cumsum(0) - taken
    return torch.arange(int(taken.sum()), device=taken.device) + (starts[indices] - offsets).repeat_interleave(taken)


@dataclass(frozen=True)
class MicroBatch:
    """Samples laid end to end without padding between them."""

    indices: Tensor
    """Positions of its samples in the batch."""
    lengths: list[int]
    """Number of tokens of each sequence."""
    tokens: Tensor
    """(t,) int64."""
    rows: Tensor
    """(r,) rows of the logits that predict response tokens: the row before each of them."""
    targets: Tensor
    """(r,) those response tokens."""
    response_index: Tensor
    """(r,) position of each among the R response tokens of the batch."""


def pack(batch: Batch, indices: Tensor) -> MicroBatch:
    """Lay the samples at `indices` end to end.

    With no samples, returns a one-token dummy that predicts nothing, so that this rank still takes part in the
    collectives.
    """
    lengths, responses = batch.lengths_B[indices], batch.response_lengths_B[indices]
    if not len(indices):
        return MicroBatch(indices, [1], batch.tokens_T.new_zeros(1), indices, indices, indices)
    tokens = batch.tokens_T[ragged_index(batch.lengths_B, indices)]
    first = (lengths.cumsum(0) - responses).repeat_interleave(responses)  # row of each sample's first response token
    within = torch.arange(int(responses.sum())) - (responses.cumsum(0) - responses).repeat_interleave(responses)
    where = first + within
    return MicroBatch(
        indices, lengths.tolist(), tokens, where - 1, tokens[where], ragged_index(batch.response_lengths_B, indices)
    )


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group samples of similar length, with at most `budget` tokens in each group; a longer sample gets a group of its
    own.

    Returns positions in `lengths`.
    """
    groups: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not groups or lengths[i] > room:
            groups.append([])
            room = budget
        groups[-1].append(i)
        room -= lengths[i]
    return groups


def mini_batches(count: int, parts: int, key: str) -> list[list[int]]:
    """Deal samples 0 .. count - 1 into `parts` parts, equal in size to within one, in an order that `key` seeds.

    The order depends on the key alone, so that every rank and every resumed run finds the same. Each part is ascending.
    """
    generator = random.Random(key)  # only random() is promised to stay the same, so sort by it
    order = sorted(range(count), key=[generator.random() for _ in range(count)].__getitem__)
    return [sorted(order[part::parts]) for part in range(parts)]


def spread(groups: list[list[int]], count: int) -> list[list[int]]:
    """Split groups in half, the fullest first, until there are `count` of them (at least one).

    Ranks that share a collective must run the same number of micro-batches. Groups stay empty where there are too few
    samples.
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


def balance(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Divide samples into `count` shards with about as many tokens each.

    The longest sample goes first, always to the shard with the fewest tokens. Every shard is in ascending order, and
    none is empty unless there are fewer samples than shards.
    """
    heap = [(0, 0, shard) for shard in range(count)]
    shards: list[list[int]] = [[] for _ in range(count)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, samples, shard = heapq.heappop(heap)
        shards[shard].append(i)
        heapq.heappush(heap, (tokens + lengths[i], samples + 1, shard))
    return [sorted(shard) for shard in shards]
