"""Samples between the roles' grids: from the engines that made them to the data-parallel ranks that need them.

Lengths travel first (a few integers a sample, to all), so every rank computes the same deal; then each sample goes straight
from one rank that holds it to every rank that needs it, in one all-to-all. No rank gathers everything.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from r1zero.batch import Batch, deal, ragged_index
from r1zero.distributed.layout import Grid, Layout


@dataclass(frozen=True)
class Census:
    """What all ranks know of an iteration's B samples."""

    prompt_lengths_B: Tensor
    response_lengths_B: Tensor
    scored_B: Tensor

    @property
    def loss_tokens(self) -> float:
        """Response tokens of all scored samples: the loss's one denominator."""
        return float((self.response_lengths_B * self.scored_B).sum())


class Exchange:
    def __init__(self, layout: Layout, rank: int, device: torch.device):
        self.layout, self.rank, self.device = layout, rank, device

    def census(self, mine: Batch | None, samples: int) -> Census:
        """`mine`: the samples of this rank's engine, None on a rank that does not generate. samples: B of all engines."""
        share = samples // self.layout.engines
        row = torch.zeros(share, 3, dtype=torch.int32)
        if mine is not None:
            row = torch.stack([mine.prompt_lengths_B, mine.response_lengths_B, mine.scored_B.long()], 1).int()
        rows = [torch.empty(share, 3, dtype=torch.int32, device=self.device) for _ in range(self.layout.size)]
        dist.all_gather(rows, row.to(self.device))
        table = torch.cat([rows[group[0]] for group in self.layout.rollout.groups("tp")]).long().cpu()   # in the engines' order
        return Census(table[:, 0], table[:, 1], table[:, 2])

    def deal(self, census: Census, grid: Grid) -> list[list[int]]:
        """Sample numbers for each data-parallel rank of a megatron grid, tokens balanced."""
        return deal((census.prompt_lengths_B + census.response_lengths_B).tolist(), grid.size("dp"))

    def to_grid(self, mine: Batch | None, census: Census, grid: Grid) -> Batch | None:
        """This rank's hand of the deal over `grid`; None on a rank outside it."""
        share = len(census.scored_B) // self.layout.engines
        engines = self.layout.rollout.groups("tp")
        holders = [engines[i // share] for i in range(len(census.scored_B))]
        wanted = self._wanted(self.deal(census, grid), grid)
        tokens = census.prompt_lengths_B + census.response_lengths_B
        have = [] if mine is None else mine.ids_B.tolist()
        ids, tokens_T = self._route(None if mine is None else mine.tokens_T, have, tokens, holders, wanted)
        floats = None if mine is None else _interleave(mine)
        _, floats = self._route(floats, have, census.response_lengths_B + 2, holders, wanted, torch.float32)
        if self.rank not in grid:
            return None
        responses = census.response_lengths_B[ids]
        starts = (responses + 2).cumsum(0) - (responses + 2)
        body = torch.ones(len(floats), dtype=torch.bool)
        body[starts] = body[starts + 1] = False
        return Batch(ids_B=ids, prompt_lengths_B=census.prompt_lengths_B[ids], response_lengths_B=responses, tokens_T=tokens_T,
                     advantages_B=floats[starts], scored_B=floats[starts + 1], rollout_logprobs_R=floats[body],
                     ref_logprobs_R=torch.empty(0))

    def between(self, values_R: Tensor | None, census: Census, source: Grid, target: Grid) -> Tensor | None:
        """Response-token values (R of the rank's hand in `source`'s deal, on its last stage) to each hand of `target`'s deal."""
        deal_source, last = self.deal(census, source), source.size("pp") - 1
        holders: list[tuple[int, ...]] = [()] * len(census.scored_B)
        for dp, hand in enumerate(deal_source):
            group = tuple(source.at(tp=tp, dp=dp, pp=last) for tp in range(source.size("tp")))
            for i in hand:
                holders[i] = group
        mine = self.rank in source and source.coordinate(self.rank, "pp") == last
        have = deal_source[source.coordinate(self.rank, "dp")] if mine else []
        _, values = self._route(values_R if mine else None, have, census.response_lengths_B, holders,
                                self._wanted(self.deal(census, target), target), torch.float32)
        return values if self.rank in target else None

    def _wanted(self, hands: list[list[int]], grid: Grid) -> list[list[int]]:
        return [hands[grid.coordinate(r, "dp")] if r in grid else [] for r in range(self.layout.size)]

    def _route(self, flat: Tensor | None, have: list[int], lengths_B: Tensor, holders: list[tuple[int, ...]],
               wanted: list[list[int]], dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
        """One ragged all-to-all. flat: this rank's rows, in the order of `have`. holders[i]: ranks that have sample i, of which
        one serves each taker, in turn. wanted[r]: samples that rank r takes. Returns (ids, flat) of this rank's, ids ascending.
        """
        def sender(i: int, taker: int) -> int:
            return taker if taker in holders[i] else holders[i][taker % len(holders[i])]

        place = {i: k for k, i in enumerate(have)}
        sent = [[place[i] for i in wanted[r] if i in place and sender(i, r) == self.rank] for r in range(self.layout.size)]
        came: list[list[int]] = [[] for _ in range(self.layout.size)]
        for i in wanted[self.rank]:
            came[sender(i, self.rank)].append(i)
        order = torch.tensor([i for ids in came for i in ids], dtype=torch.long)
        mine_lengths = lengths_B[torch.tensor(have, dtype=torch.long)]
        leaving = torch.tensor([row for rows in sent for row in rows], dtype=torch.long)
        out = torch.empty(0, dtype=dtype) if flat is None else flat[ragged_index(mine_lengths, leaving)]
        into = torch.empty(int(lengths_B[order].sum()), dtype=dtype, device=self.device)
        dist.all_to_all_single(into, out.to(self.device, dtype), [int(lengths_B[ids].sum()) for ids in came],
                               [int(mine_lengths[rows].sum()) for rows in sent])
        ids, ranking = order.sort()
        return ids, into.cpu()[ragged_index(lengths_B[order], ranking)]


def _interleave(batch: Batch) -> Tensor:
    """Each sample's advantage, scored and rollout logprobs, in a row: (B * 2 + R,)."""
    lengths = batch.response_lengths_B + 2
    starts = lengths.cumsum(0) - lengths
    flat = torch.empty(int(lengths.sum()))
    body = torch.ones(len(flat), dtype=torch.bool)
    body[starts] = body[starts + 1] = False
    flat[starts], flat[starts + 1], flat[body] = batch.advantages_B, batch.scored_B, batch.rollout_logprobs_R
    return flat
