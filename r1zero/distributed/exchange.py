"""Moves samples between the grids of the roles: from the engines that generated them to the data-parallel ranks that
need them.

All ranks first receive the lengths, a few integers per sample, so that each rank computes the same shards. Then each
sample goes directly from one rank that holds it to every rank that needs it, in one all-to-all. No rank gathers
everything.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.batch import Batch, LossSize, MiniBatch, ragged_index, sample_sizes
from r1zero.distributed.layout import Grid, Layout
from r1zero.division import balance


@dataclass(frozen=True)
class BatchLengths:
    """What all ranks know about the B samples of an iteration."""

    groups_B: Tensor
    """Equal for samples that share a prompt, as in Batch. int64."""
    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    scored_B: Tensor
    engine_B: Tensor
    """The engine that has each sample. int64."""

    @property
    def loss_tokens(self) -> float:
        """Number of response tokens in all scored samples: the denominator of the loss."""
        return float((self.response_lengths_B * self.scored_B).sum())

    def mini_batch(self, ids: list[int], longest: int) -> MiniBatch:
        """Returns the update on the samples `ids`. longest: largest number of tokens that a response may have."""
        ids_B = torch.tensor(ids, dtype=torch.long)
        scored_B = self.scored_B[ids_B]
        tokens = float((self.response_lengths_B[ids_B] * scored_B).sum())
        return MiniBatch(ids_B, LossSize(tokens, float(scored_B.sum()), longest))


class Rewards(NamedTuple):
    """The rewards of B samples, with shaping (scale, clip, penalties)."""

    rewards_B: Tensor
    """float64; the value of a sample that was not scored is ignored."""
    scored_B: Tensor
    """bool."""
    useful_B: Tensor
    """bool: whether the rules gave different rewards to the samples of its group."""


class Exchange:
    """Moves samples between grids, on one rank. All methods that communicate are collective over the world."""

    def __init__(self, layout: Layout, rank: int, device: torch.device):
        self.layout, self.rank, self.device = layout, rank, device

    def gather_lengths(self, mine: Batch | None, engine_B: Tensor) -> BatchLengths:
        """Share the lengths of all samples with all ranks. Collective over the world.

        mine: the samples of this rank's engine, in ascending order; None on a rank that does not generate.
        engine_B: the engine of each of the B samples of all engines, equal on all ranks.
        """
        row = None
        if mine is not None:
            columns = [mine.groups_B, mine.prompt_lengths_B, mine.response_lengths_B, mine.scored_B.long()]
            row = torch.stack(columns, 1).int()
        groups_B, prompts_B, responses_B, scored_B = self._gather(row, engine_B, 4).long().unbind(1)
        return BatchLengths(groups_B, prompts_B, responses_B, scored_B, engine_B)

    def shares(self, samples: int) -> Tensor:
        """Returns the (samples,) engines of samples that are divided into equal, contiguous shares."""
        return torch.arange(self.layout.engines).repeat_interleave(samples // self.layout.engines)

    def gather_rewards(self, mine: Rewards | None, engine_B: Tensor) -> Rewards:
        """Share the rewards of all samples with all ranks, bit for bit. Collective over the world.

        The arguments are those of `gather_lengths`.
        """
        row = None
        if mine is not None:  # a float64 is sent as two int32, which every backend can send
            flags = torch.stack([mine.scored_B, mine.useful_B], 1).int()
            row = torch.cat([mine.rewards_B.double()[:, None].view(torch.int32), flags], 1)
        table = self._gather(row, engine_B, 4)
        return Rewards(table[:, :2].contiguous().view(torch.float64)[:, 0], table[:, 2] > 0, table[:, 3] > 0)

    def _gather(self, row: Tensor | None, engine_B: Tensor, columns: int) -> Tensor:
        """Returns a (B, columns) int32 table of all engines' samples. row: the rows of this rank's engine, in order."""
        groups = self.layout.rollout.groups("tp")
        counts = torch.bincount(engine_B, minlength=len(groups)).tolist()
        padded = torch.zeros(max(*counts, 1), columns, dtype=torch.int32)
        if row is not None:
            padded[: len(row)] = row
        mine = padded.to(self.device)
        rows = [torch.empty_like(mine) for _ in range(self.layout.size)]
        dist.all_gather(rows, mine)
        table = torch.empty(len(engine_B), columns, dtype=torch.int32)
        for engine, (group, count) in enumerate(zip(groups, counts, strict=True)):
            table[engine_B == engine] = rows[group[0]][:count].cpu()
        return table

    def sum_by_sample(self, values_B: Tensor | None, ids_B: Tensor | None, samples: int) -> Tensor:
        """Returns (samples,) float32 values on all ranks. Collective over the world.

        values_B: the values of the samples ids_B, on the one rank that reports them; None on other ranks.
        """
        table = torch.zeros(samples)
        if values_B is not None and ids_B is not None:
            table[ids_B] = values_B.float()
        table = table.to(self.device)
        dist.all_reduce(table)
        return table.cpu()

    def shards(self, lengths: BatchLengths, grid: Grid) -> list[list[int]]:
        """Returns the sample numbers of each data-parallel rank of a megatron grid, with balanced numbers of tokens."""
        sizes = sample_sizes(lengths.groups_B, lengths.prompt_lengths_B, lengths.response_lengths_B)
        return balance(sizes, grid.size("dp"))

    def to_grid(
        self, mine: Batch | None, lengths: BatchLengths, grid: Grid, chosen: tuple[int, int] | None = None
    ) -> Batch | None:
        """Returns this rank's shard over `grid`, or None on a rank outside it. Collective over the world.

        chosen: the layers with experts and the experts per token of `experts_T`, if the samples have it.
        """
        engines = self.layout.rollout.groups("tp")
        holders = [engines[engine] for engine in lengths.engine_B.tolist()]
        wanted = self._wanted(self.shards(lengths, grid), grid)
        tokens = lengths.prompt_lengths_B + lengths.response_lengths_B
        have = [] if mine is None else mine.ids_B.tolist()
        ids, tokens_T = self._route(None if mine is None else mine.tokens_T, have, tokens, holders, wanted)
        rows = None if mine is None else _FloatRows(mine.response_lengths_B).join(mine)
        _, flat = self._route(rows, have, lengths.response_lengths_B + 2, holders, wanted, torch.empty(0))
        experts_T = None
        if chosen:
            rows = None if mine is None else _as_int32(mine.experts_T)
            width = (chosen[0] * chosen[1] + 1) // 2
            _, found = self._route(rows, have, tokens, holders, wanted, torch.empty(0, width, dtype=torch.int32))
            experts_T = _from_int32(found, chosen)
        if self.rank not in grid:
            return None
        responses_B = lengths.response_lengths_B[ids]
        advantages_B, scored_B, logprobs_R = _FloatRows(responses_B).split(flat)
        batch = Batch(
            ids_B=ids,
            groups_B=lengths.groups_B[ids],
            prompt_lengths_B=lengths.prompt_lengths_B[ids],
            response_lengths_B=responses_B,
            tokens_T=tokens_T,
            advantages_B=advantages_B,
            scored_B=scored_B,
            rollout_logprobs_R=logprobs_R,
            ref_logprobs_R=torch.empty(0),
        )
        return batch if experts_T is None else replace(batch, experts_T=experts_T)

    def regrid(
        self, values_R: Tensor | None, lengths: BatchLengths, source_shards: list[list[int]], source: Grid, target: Grid
    ) -> Tensor | None:
        """Move values of response tokens from the data-parallel ranks of `source`, where the last pipeline stage holds
        them, to the shards of `target`.

        values_R: in the order of the samples in this rank's entry of source_shards. Collective over the world; returns
        None on ranks outside `target`.
        """
        last = source.size("pp") - 1
        holders: list[tuple[int, ...]] = [()] * len(lengths.scored_B)
        for dp, shard in enumerate(source_shards):
            group = tuple(source.at(tp=tp, dp=dp, pp=last) for tp in range(source.size("tp")))
            for i in shard:
                holders[i] = group
        mine = self.rank in source and source.coordinate(self.rank, "pp") == last
        have = source_shards[source.coordinate(self.rank, "dp")] if mine else []
        _, values = self._route(
            values_R if mine else None,
            have,
            lengths.response_lengths_B,
            holders,
            self._wanted(self.shards(lengths, target), target),
            torch.empty(0),
        )
        return values if self.rank in target else None

    def _wanted(self, shards: list[list[int]], grid: Grid) -> list[list[int]]:
        return [shards[grid.coordinate(r, "dp")] if r in grid else [] for r in range(self.layout.size)]

    def _route(
        self,
        flat: Tensor | None,
        have: list[int],
        lengths_B: Tensor,
        holders: list[tuple[int, ...]],
        wanted: list[list[int]],
        like: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one ragged all-to-all.

        flat: this rank's rows, in the order of `have`. holders[i]: the ranks that hold sample i; they take turns in
        sending it. wanted[r]: the samples that rank r receives. like: an empty tensor with the type and the width of
        the rows; the default is int64 without a width. Returns (ids, flat) of what this rank receives, with ascending
        ids.
        """
        like = torch.empty(0, dtype=torch.int64) if like is None else like

        def sender(i: int, taker: int) -> int:
            return taker if taker in holders[i] else holders[i][taker % len(holders[i])]

        place = {i: k for k, i in enumerate(have)}
        sent = [
            [place[i] for i in wanted[r] if i in place and sender(i, r) == self.rank] for r in range(self.layout.size)
        ]
        came: list[list[int]] = [[] for _ in range(self.layout.size)]
        for i in wanted[self.rank]:
            came[sender(i, self.rank)].append(i)
        order = torch.tensor([i for ids in came for i in ids], dtype=torch.long)
        mine_lengths = lengths_B[torch.tensor(have, dtype=torch.long)]
        leaving = torch.tensor([row for rows in sent for row in rows], dtype=torch.long)
        out = like if flat is None else flat[ragged_index(mine_lengths, leaving)]
        into = like.new_empty((int(lengths_B[order].sum()), *like.shape[1:]), device=self.device)
        dist.all_to_all_single(
            into,
            out.to(into),
            [int(lengths_B[ids].sum()) for ids in came],
            [int(mine_lengths[rows].sum()) for rows in sent],
        )
        ids, ranking = order.sort()
        return ids, into.cpu()[ragged_index(lengths_B[order], ranking)]


def _as_int32(experts_TLK: Tensor) -> Tensor:
    """Returns (T, L, K) int16 as (T, width) int32, which every backend can send: two numbers in each."""
    flat = experts_TLK.flatten(1)
    return torch.nn.functional.pad(flat, (0, flat.shape[1] % 2)).contiguous().view(torch.int32)


def _from_int32(rows: Tensor, chosen: tuple[int, int]) -> Tensor:
    """Undo `_as_int32`. chosen: L and K."""
    return rows.view(torch.int16)[:, : chosen[0] * chosen[1]].unflatten(1, chosen)


class _FloatRows:
    """The format in which the floats of samples are sent: for each sample its advantage, `scored`, and rollout
    logprobs."""

    def __init__(self, response_lengths_B: Tensor):
        lengths_B = response_lengths_B + 2
        self.starts_B = lengths_B.cumsum(0) - lengths_B
        self.is_logprob = torch.ones(int(lengths_B.sum()), dtype=torch.bool)
        self.is_logprob[self.starts_B] = self.is_logprob[self.starts_B + 1] = False

    def join(self, batch: Batch) -> Tensor:
        """Returns (B * 2 + R,) values."""
        flat = torch.empty(len(self.is_logprob))
        flat[self.starts_B], flat[self.starts_B + 1], flat[self.is_logprob] = (
            batch.advantages_B,
            batch.scored_B,
            batch.rollout_logprobs_R,
        )
        return flat

    def split(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (advantages_B, scored_B, rollout_logprobs_R)."""
        return flat[self.starts_B], flat[self.starts_B + 1], flat[self.is_logprob]
