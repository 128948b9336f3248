"""The data that passes between the phases of a step: prompts, responses, the ragged training batch, micro-batches.

Shapes: P prompts, G responses per prompt, B = P * G samples, T tokens (prompts and responses), R response tokens.
"""

from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from r1zero.division import SampleSize


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
    def sizes(self) -> list[SampleSize]:
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
