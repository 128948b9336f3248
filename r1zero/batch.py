"""The nouns that cross stages, with their shapes: prompts, responses, the ragged training batch, packed micro-batches.

Legend: P prompts, G responses per prompt, B = P * G samples, T tokens (prompts and responses), R response tokens.
"""

import heapq
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Sequence

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    index: int
    """Row in the data; in a run its place in the run's order of prompts, which with iteration and sample makes the seed."""
    token_ids: tuple[int, ...]
    label: str
    text: str
    additional: dict[str, str | None] = field(default_factory=dict, hash=False)
    """The row's columns that dataset_additional_keys kept, for reward rules of the user's own."""


@dataclass(frozen=True)
class Response:
    prompt: int
    """Position of its prompt in the list given to generate."""
    sample: int
    """0 .. G - 1."""
    token_ids: list[int]
    """With the stop token, where there is one."""
    logprobs: list[float]
    """Of each token when sampled, temperature included."""
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Batch:
    """Samples as flat ragged tensors: what training needs of them, and nothing else."""

    ids_B: Tensor
    """Number of the sample in the iteration: prompt number * G + sample. int64."""
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    tokens_T: Tensor
    """Each sample's prompt, then its response. int64."""
    advantages_B: Tensor
    scored_B: Tensor
    """1.0, or 0.0 for a sample that was not scored: its tokens carry no loss. float32."""
    rollout_logprobs_R: Tensor
    """By the engine that sampled. float32."""
    ref_logprobs_R: Tensor
    """By the reference. float32; empty where there is none."""

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
            ref_logprobs_R=ragged(self.ref_logprobs_R, self.response_lengths_B))

    def with_reference(self, ref_logprobs_R: Tensor) -> "Batch":
        return replace(self, ref_logprobs_R=ref_logprobs_R)


def ragged_index(lengths_B: Tensor, indices: Tensor) -> Tensor:
    """Positions, in a flat tensor of rows of `lengths_B`, of the elements of the rows `indices`, row by row."""
    starts, taken = lengths_B.cumsum(0) - lengths_B, lengths_B[indices]
    offsets = taken.cumsum(0) - taken
    return torch.arange(int(taken.sum()), device=taken.device) + (starts[indices] - offsets).repeat_interleave(taken)


@dataclass(frozen=True)
class Pack:
    """One micro-batch: samples laid end to end, no padding between them."""

    indices: Tensor
    """Its samples' places in the batch."""
    lengths: list[int]
    """Tokens of each sequence."""
    tokens: Tensor
    """(t,) int64."""
    rows: Tensor
    """(r,) rows of the logits that predict response tokens: one before each."""
    targets: Tensor
    """(r,) those response tokens."""
    response_index: Tensor
    """(r,) where each lies in the batch's R."""


def pack(batch: Batch, indices: Tensor) -> Pack:
    """Lay samples end to end. Without samples: one token and nothing to predict, for the ranks whose collectives it joins."""
    lengths, responses = batch.lengths_B[indices], batch.response_lengths_B[indices]
    if not len(indices):
        return Pack(indices, [1], batch.tokens_T.new_zeros(1), indices, indices, indices)
    tokens = batch.tokens_T[ragged_index(batch.lengths_B, indices)]
    first = (lengths.cumsum(0) - responses).repeat_interleave(responses)   # row of each sample's first response token
    within = torch.arange(int(responses.sum())) - (responses.cumsum(0) - responses).repeat_interleave(responses)
    where = first + within
    return Pack(indices, lengths.tolist(), tokens, where - 1, tokens[where], ragged_index(batch.response_lengths_B, indices))


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Samples of like length together, at most `budget` tokens each; places in `lengths`. A single longer one stands alone."""
    groups: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not groups or lengths[i] > room:
            groups.append([])
            room = budget
        groups[-1].append(i)
        room -= lengths[i]
    return groups


def spread(groups: list[list[int]], count: int) -> list[list[int]]:
    """Exactly `count` groups (at least 1), by halving the fullest; an empty group where there are fewer samples than that.

    Ranks that share a collective must run the same number of micro-batches.
    """
    groups = list(groups) or [[]]   # a rank without samples takes part in the collectives all the same
    while len(groups) < count:
        fullest = max(range(len(groups)), key=lambda g: len(groups[g]))
        group = groups[fullest]
        if len(group) < 2:
            groups.append([])
            continue
        groups[fullest:fullest + 1] = [group[:len(group) // 2], group[len(group) // 2:]]
    return groups


def deal(lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Samples dealt to `hands` ranks, longest first to the one with fewest tokens; every hand ascending, none empty
    while samples last."""
    heap = [(0, 0, h) for h in range(hands)]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, count, hand = heapq.heappop(heap)
        dealt[hand].append(i)
        heapq.heappush(heap, (tokens + lengths[i], count + 1, hand))
    return [sorted(hand) for hand in dealt]
