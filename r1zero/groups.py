"""Chooses the groups that make up the batch of an iteration, cuts out this engine's part, and divides it into updates.

How tokens are sampled, and with which seeds, is in rollout/engine.py.

An iteration draws prompts in rounds; a group is the responses to one prompt. Without dynamic sampling there is one
round, and all of its groups are used. With dynamic sampling, groups whose rewards are all equal are left out, because
they have no learning signal, and further prompts are drawn until the batch is full or `max_rounds` is reached (Yu et
al., "DAPO", 2025, section 3.2, equation 11).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from r1zero.batch import Batch, MiniBatch, Prompt, Response
from r1zero.config import Config
from r1zero.distributed.exchange import BatchLengths, Rewards
from r1zero.division import mini_batches
from r1zero.grading import Graded, Samples, to_batch
from r1zero.shaping import in_loss


class Round(NamedTuple):
    """One round of an iteration: the responses to prompts_per_iteration prompts, and their grades."""

    samples: Samples | None
    """The samples of this rank's engine; None on a rank that does not generate."""
    graded: Graded | None
    """The grades of `samples`."""
    rewards: Rewards
    """The rewards of all engines' samples, on every rank."""


class Chosen(NamedTuple):
    """The groups that make up the batch, equal on all ranks."""

    groups: list[int]
    """Numbers of the groups, counted over all rounds, in ascending order."""
    drawn: int
    """Number of groups in all rounds."""
    rewards: Rewards
    """The rewards of the samples of `groups`, in their order."""
    engine_B: Tensor
    """The engine that has each of these samples. int64."""


def is_enough(cfg: Config, rounds: Sequence[Round]) -> bool:
    """Returns whether the iteration needs no further round."""
    recipe = cfg.grpo
    if not recipe.dynamic_sampling or len(rounds) == recipe.max_rounds:
        return True
    return len(_useful(rounds, recipe.group_size)) >= recipe.prompts_per_iteration


def _useful(rounds: Sequence[Round], group_size: int) -> list[int]:
    useful_P = torch.cat([one.rewards.useful_B for one in rounds])[::group_size]
    return useful_P.nonzero()[:, 0].tolist()


def choose_groups(cfg: Config, rounds: Sequence[Round], engines: int) -> Chosen:
    """Returns the first useful groups, at most as many as a batch has; without dynamic sampling, all groups."""
    size, prompts = cfg.grpo.group_size, cfg.grpo.prompts_per_iteration
    groups = _useful(rounds, size)[:prompts] if cfg.grpo.dynamic_sampling else list(range(prompts))
    samples_B = sample_numbers(groups, size)
    rewards = Rewards(*(torch.cat(column)[samples_B] for column in zip(*(d.rewards for d in rounds), strict=True)))
    engine_P = torch.tensor(groups, dtype=torch.long) % prompts // (prompts // engines)
    return Chosen(groups, prompts * len(rounds), rewards, engine_P.repeat_interleave(size))


def sample_numbers(groups: list[int], group_size: int) -> Tensor:
    """Returns the numbers of the samples of these groups, group by group."""
    first = torch.tensor(groups, dtype=torch.long)[:, None] * group_size
    return (first + torch.arange(group_size)).flatten()


def merge_rounds(rounds: Sequence[Round]) -> tuple[Samples | None, Graded | None]:
    """Returns all samples of this rank's engine in the iteration and their grades, round by round.

    Returns (None, None) on a rank that does not generate.
    """
    samples = [one.samples for one in rounds if one.samples]
    graded = [one.graded for one in rounds if one.graded]
    if len(rounds) == 1 or not samples:
        return rounds[0].samples, rounds[0].graded
    prompts: list[Prompt] = []
    responses: list[Response] = []
    for part in samples:
        responses += [replace(r, prompt=r.prompt + len(prompts)) for r in part.responses]
        prompts += part.prompts
    return Samples(prompts, responses, samples[0].first_id), Graded(
        torch.cat([g.rewards_B for g in graded]),
        torch.cat([g.scored_B for g in graded]),
        torch.cat([g.outcomes_B for g in graded]),
        {rule: torch.cat([g.rule_scores[rule] for g in graded]) for rule in graded[0].rule_scores},
        torch.cat([g.in_format_B for g in graded]),
    )


def own_batch(cfg: Config, samples: Samples, graded: Graded, chosen: Chosen, advantages_B: Tensor) -> Batch:
    """Returns the chosen samples of this engine, numbered by their position in the batch.

    samples, graded: all of this engine's in the iteration. advantages_B: those of the whole batch.
    """
    size, prompts = cfg.grpo.group_size, cfg.grpo.prompts_per_iteration
    share = len(samples.prompts) // (chosen.drawn // prompts)
    first = samples.first_id // size
    # Positions of this engine's groups in the batch, and their numbers among all groups that the engine generated.
    positions = [at for at, group in enumerate(chosen.groups) if first <= group % prompts < first + share]
    own_groups = [chosen.groups[at] // prompts * share + chosen.groups[at] % prompts - first for at in positions]
    ids_B, rows_B = sample_numbers(positions, size), sample_numbers(own_groups, size)
    generated = to_batch(samples, torch.zeros(len(samples.responses)), in_loss(cfg, samples, graded))
    groups_B = ids_B // size if cfg.train.share_prompts else ids_B
    return replace(generated.select(rows_B), ids_B=ids_B, groups_B=groups_B, advantages_B=advantages_B[ids_B])


def updates(cfg: Config, iteration: int, lengths: BatchLengths) -> list[MiniBatch]:
    """Returns one mini-batch for each update of the iteration, in an order that depends on seed and iteration only."""
    keys = [f"{cfg.run.seed} {iteration} {epoch}" for epoch in range(cfg.grpo.epochs)]
    parts = [part for key in keys for part in mini_batches(len(lengths.scored_B), cfg.grpo.mini_batches, key)]
    return [lengths.mini_batch(part, cfg.rollout.max_response_tokens) for part in parts]
