"""Dynamic sampling: which of the sampled groups make up the batch of an iteration, and what an engine has of them.

An iteration draws prompts in rounds. Without dynamic sampling there is one round, and all of its groups are used. With
it, groups whose rewards are all equal are left out, because they teach nothing, and further prompts are drawn until the
batch is full or `max_rounds` is reached (Yu et al., "DAPO", 2025, section 3.2, equation 11).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from r1zero.batch import Batch, MiniBatch, mini_batches
from r1zero.config import Config
from r1zero.distributed.exchange import BatchLengths, Rewards
from r1zero.grading import Graded, Samples, to_batch
from r1zero.shaping import in_loss


class Draw(NamedTuple):
    """One round."""

    samples: Samples | None
    """Of this rank's engine; None on a rank that does not generate."""
    graded: Graded | None
    rewards: Rewards
    """Of all engines, on every rank."""


class Chosen(NamedTuple):
    """The groups that make up the batch, alike on all ranks."""

    groups: list[int]
    """Numbers of the groups, counted over all rounds, ascending."""
    drawn: int
    """Groups of all rounds together."""
    rewards: Rewards
    """Of the samples of `groups`, in their order."""
    engine_B: Tensor
    """The engine that has each of those samples. int64."""


def is_enough(cfg: Config, draws: Sequence[Draw]) -> bool:
    """Whether no further round is due."""
    recipe = cfg.grpo
    if not recipe.dynamic_sampling or len(draws) == recipe.max_rounds:
        return True
    return len(_useful(draws, recipe.group_size)) >= recipe.prompts_per_iteration


def _useful(draws: Sequence[Draw], group_size: int) -> list[int]:
    useful_P = torch.cat([draw.rewards.useful_B for draw in draws])[::group_size]
    return useful_P.nonzero()[:, 0].tolist()


def choose(cfg: Config, draws: Sequence[Draw], engines: int) -> Chosen:
    """The first groups that are useful, as many as a batch has."""
    size, prompts = cfg.grpo.group_size, cfg.grpo.prompts_per_iteration
    groups = _useful(draws, size)[:prompts] if cfg.grpo.dynamic_sampling else list(range(prompts))
    samples_B = sample_numbers(groups, size)
    rewards = Rewards(*(torch.cat(column)[samples_B] for column in zip(*(d.rewards for d in draws), strict=True)))
    engine_P = torch.tensor(groups, dtype=torch.long) % prompts // (prompts // engines)
    return Chosen(groups, prompts * len(draws), rewards, engine_P.repeat_interleave(size))


def sample_numbers(groups: list[int], group_size: int) -> Tensor:
    """Numbers of the samples of these groups, group by group."""
    first = torch.tensor(groups, dtype=torch.long)[:, None] * group_size
    return (first + torch.arange(group_size)).flatten()


def merge(draws: Sequence[Draw]) -> tuple[Samples | None, Graded | None]:
    """Everything that this rank's engine sampled in the iteration, round after round."""
    if len(draws) == 1 or draws[0].samples is None:
        return draws[0].samples, draws[0].graded
    prompts, responses = [], []
    for draw in draws:
        responses += [replace(r, prompt=r.prompt + len(prompts)) for r in draw.samples.responses]
        prompts += draw.samples.prompts
    graded = [draw.graded for draw in draws]
    rules = {rule: torch.cat([g.rule_scores[rule] for g in graded]) for rule in graded[0].rule_scores}
    columns = [torch.cat([getattr(g, name) for g in graded]) for name in ("rewards_B", "scored_B", "outcomes_B")]
    return Samples(prompts, responses, draws[0].samples.first_id), Graded(*columns, rules)


def own_batch(cfg: Config, samples: Samples, graded: Graded, chosen: Chosen, advantages_B: Tensor) -> Batch:
    """The chosen samples of this engine, numbered by their place in the batch. samples, graded: of all rounds;
    advantages_B: of the batch."""
    size, prompts = cfg.grpo.group_size, cfg.grpo.prompts_per_iteration
    share = len(samples.prompts) // (chosen.drawn // prompts)
    first = samples.first_id // size
    mine = [place for place, group in enumerate(chosen.groups) if first <= group % prompts < first + share]
    here = [chosen.groups[place] // prompts * share + chosen.groups[place] % prompts - first for place in mine]
    ids_B, rows_B = sample_numbers(mine, size), sample_numbers(here, size)
    every = to_batch(samples, torch.zeros(len(samples.responses)), in_loss(cfg, samples, graded))
    return replace(every.select(rows_B), ids_B=ids_B, advantages_B=advantages_B[ids_B])


def updates(cfg: Config, iteration: int, lengths: BatchLengths) -> list[MiniBatch]:
    """One mini-batch for each update of the iteration, in an order that every rank and every resumed run finds."""
    keys = [f"{cfg.run.seed} {iteration} {epoch}" for epoch in range(cfg.grpo.epochs)]
    parts = [part for key in keys for part in mini_batches(len(lengths.scored_B), cfg.grpo.mini_batches, key)]
    return [lengths.mini_batch(part, cfg.rollout.max_response_tokens) for part in parts]
