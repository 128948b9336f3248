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


@dataclass(frozen=True)
class Batch:
    """Samples as flat ragged tensors, with only the fields that training needs."""

    ids_B: Tensor
    """Number of each sample within the iteration: prompt number * G + sample number. int64."""
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

    @property
    def lengths_B(self) -> Tensor:
        """Number of tokens of each sample, prompt and response."""
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
    """Samples packed end to end, without padding."""

    indices: Tensor
    """Positions of its samples in the batch."""
    lengths: list[int]
    """Number of tokens of each sequence."""
    tokens: Tensor
    """(t,) token ids. int64."""
    rows: Tensor
    """(r,) rows of the logits that predict the response tokens; each is the row before its token."""
    targets: Tensor
    """(r,) ids of the response tokens."""
    response_index: Tensor
    """(r,) position of each response token among the R response tokens of the batch."""


def pack(batch: Batch, indices: Tensor) -> MicroBatch:
    """Pack the samples at `indices` end to end.

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
    """Group samples of similar length, with at most `budget` tokens in a group.

    A sample that is longer than the budget gets a group of its own. Returns indices into `lengths`.
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
    are empty.
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

    Each sample, from the longest to the shortest, goes to the shard with the fewest tokens. Every shard is in ascending
    order, and none is empty unless there are fewer samples than shards.
    """
    heap = [(0, 0, shard) for shard in range(count)]
    shards: list[list[int]] = [[] for _ in range(count)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, samples, shard = heapq.heappop(heap)
        shards[shard].append(i)
        heapq.heappush(heap, (tokens + lengths[i], samples + 1, shard))
    return [sorted(shard) for shard in shards]
