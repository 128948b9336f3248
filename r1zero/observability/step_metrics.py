"""The metrics of a step, from its samples and its update.

The names are those of MindSpeed-RL (docs/zh/features/log_metrics.md there).
"""

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor

from r1zero import grpo
from r1zero.config import Config
from r1zero.distributed.exchange import BatchLengths, Rewards
from r1zero.grading import OUTCOMES, Graded, Samples
from r1zero.objective import SUMS
from r1zero.observability.metrics import MetricReducer

SOURCE_REWARD, SOURCE_SCORED = "source_reward", "source_scored"
"""Sums over the graded responses of each source."""
RANGES = ("rewards", "response_length", "prompt_length")
"""Quantities that are reported with mean, minimum and maximum."""


def add_samples(
    reducer: MetricReducer, cfg: Config, samples: Samples | None, graded: Graded | None, datasets: Sequence[str] = ()
) -> None:
    """Add the samples of an engine, on its first rank. Other ranks pass None, which adds the same names without
    content.

    datasets: the sources of the prompts, if there are several.
    """
    rules = list(cfg.reward.rules)
    for name in (
        "samples",
        "scored",
        "timeouts",
        "failures",
        "reward",
        "constant_groups",
        "groups",
        "clipped_responses",
        "in_format",
        "prompt_tokens",
        "response_tokens",
        *(f"rule/{rule}" for rule in rules),
        *(f"{what}/{name}" for name in datasets for what in (SOURCE_REWARD, SOURCE_SCORED)),
    ):
        reducer.add(name, 0.0)
    for name in RANGES:
        reducer.peak(f"{name}/max", float("-inf"))
        reducer.peak(f"{name}/-min", float("-inf"))
    if samples is None or graded is None:
        return
    by_group = (-1, cfg.grpo.group_size)
    rewards = graded.rewards_B[graded.scored_B]
    lengths = [len(r.token_ids) for r in samples.responses]
    prompts = [len(samples.prompts[r.prompt].token_ids) for r in samples.responses]
    constant_P = grpo.is_constant_group(graded.rewards_B.view(by_group), graded.scored_B.view(by_group))
    outcomes = torch.bincount(graded.outcomes_B, minlength=len(OUTCOMES)).tolist()
    sums = {
        "samples": len(lengths),
        **dict(zip(("scored", "timeouts", "failures"), outcomes, strict=True)),
        "reward": rewards.sum(),
        "constant_groups": constant_P.sum(),
        "groups": len(constant_P),
        "clipped_responses": sum(r.finish_reason == "length" for r in samples.responses),
        "in_format": graded.in_format_B.sum(),
        "prompt_tokens": sum(prompts),
        "response_tokens": sum(lengths),
        **{f"rule/{rule}": graded.rule_scores[rule][graded.scored_B].sum() for rule in rules},
    }
    for name, value in sums.items():
        reducer.add(name, float(value))
    for response, reward, scored in zip(samples.responses, graded.rewards_B.tolist(), graded.scored_B, strict=True):
        if datasets and scored:
            name = samples.prompts[response.prompt].dataset
            reducer.add(f"{SOURCE_REWARD}/{name}", reward)
            reducer.add(f"{SOURCE_SCORED}/{name}", 1.0)
    for name, values in zip(RANGES, (rewards.tolist(), lengths, prompts), strict=True):
        if values:
            reducer.peak(f"{name}/max", max(values))
            reducer.peak(f"{name}/-min", -min(values))


def distributions(rewards: Rewards, lengths: BatchLengths) -> dict[str, Tensor]:
    """Returns the rewards, as the advantages use them, and the lengths of the responses of a batch."""
    return {"grpo/rewards": rewards.rewards_B[rewards.scored_B], "response_length": lengths.response_lengths_B}


def add_update(reducer: MetricReducer, update: dict[str, float]) -> None:
    """Add the result of Policy.update. A rank that does not train passes an empty dict."""
    for name in SUMS:
        reducer.add(f"actor/{name}", update.get(name, 0.0))
    for name in ("computed_tokens", "replayed", "replaced"):
        reducer.add(name, update.get(name, 0.0))
    for name in ("gap_max", "grad_norm", "lr", "skipped"):
        reducer.peak(name, update.get(name, 0.0))


def step_metrics(cfg: Config, sums: dict[str, float], peaks: dict[str, float], loss_tokens: float) -> dict[str, float]:
    """Returns means over samples, groups or tokens, with lengths in tokens.

    Unlike MindSpeed-RL's, actor/pg_loss is signed and does not include the KL.
    """
    scored, tokens = max(sums["scored"], 1.0), max(loss_tokens, 1.0)
    means = {
        "rewards": sums["reward"] / scored,
        "response_length": sums["response_tokens"] / sums["samples"],
        "prompt_length": sums["prompt_tokens"] / sums["samples"],
    }
    metrics: dict[str, float] = {}
    for name in RANGES:
        prefix = "grpo/rewards" if name == "rewards" else name
        metrics |= {
            f"{prefix}/mean": means[name],
            f"{prefix}/max": peaks[f"{name}/max"],
            f"{prefix}/min": -peaks[f"{name}/-min"],
        }
    for rule in cfg.reward.rules:
        metrics[f"{rule}_rewards/mean"] = sums[f"rule/{rule}"] / scored
    metrics |= source_rewards(sums)
    return metrics | {
        "frac_reward_zero_std": sums["constant_groups"] / sums["groups"],
        "response_length/clip_ratio": sums["clipped_responses"] / sums["samples"],
        "response_format/mean": sums["in_format"] / sums["samples"],
        "reward/timeouts": sums["timeouts"],
        "reward/failures": sums["failures"],
        "actor/pg_loss": sums["actor/pg_loss"] / tokens,
        "actor/kl_loss": sums["actor/kl"] / tokens,
        "actor/entropy": sums["actor/entropy"] / tokens,
        "actor/pg_clipfrac": sums["actor/clipped"] / tokens,
        "actor/ppo_kl": sums["actor/ppo_kl"] / tokens,
        "actor/lr": peaks["lr"],
        "grad_norm": peaks["grad_norm"],
        "update/skipped": peaks["skipped"],
        "update/empty": float(not loss_tokens),
        "update/computed_tokens": sums["computed_tokens"],
        "rollout_gap/mean": sums["actor/gap"] / max(sums["actor/gap_tokens"], 1.0),
        "rollout_gap/max": peaks["gap_max"],
        **_correction(cfg, sums, tokens),
        **_routing(cfg, sums),
    }


def source_rewards(sums: dict[str, float]) -> dict[str, float]:
    """Returns the mean reward of each of several sources; NaN for one without graded responses in this iteration."""
    counts = {
        name.removeprefix(f"{SOURCE_SCORED}/"): count
        for name, count in sums.items()
        if name.startswith(f"{SOURCE_SCORED}/")
    }
    return {
        f"reward/source/{name}": sums[f"{SOURCE_REWARD}/{name}"] / count if count else nan
        for name, count in counts.items()
    }


def rounds(cfg: Config, drawn: int, share: float) -> dict[str, float]:
    """Returns the number of rounds of dynamic sampling, and the share of the drawn groups that is in the batch."""
    if not cfg.grpo.dynamic_sampling:
        return {}
    return {"dynamic_sampling/rounds": float(drawn), "dynamic_sampling/kept": share}


def _correction(cfg: Config, sums: dict[str, float], tokens: float) -> dict[str, float]:
    """Returns the share of tokens that cap or mask changed, and the relative effective sample size of the weights w.

    The latter is (sum w)^2 / (tokens * sum w^2), which is 1 if all weights are equal.
    """
    if cfg.grpo.rollout_correction == "none":
        return {}
    squares = sums["actor/weight_squared"]
    return {
        "rollout_correction/touched": sums["actor/corrected"] / tokens,
        "rollout_correction/effective_sample_size": sums["actor/weight"] ** 2 / (tokens * squares) if squares else 0.0,
    }


def _routing(cfg: Config, sums: dict[str, float]) -> dict[str, float]:
    """Returns the share of the engine's choices of experts, one for each token and layer, that replaced another."""
    return (
        {"routing_replay/replaced": sums["replaced"] / max(sums["replayed"], 1.0)} if cfg.train.routing_replay else {}
    )


def speeds(sums: dict[str, float], timings: dict[str, float], ranks: int) -> dict[str, float]:
    """Returns tokens/s per rank (on Ascend a rank is a die) of the whole iteration, the update, and the rollout's
    responses."""
    tokens = (sums["prompt_tokens"] + sums["response_tokens"]) / ranks
    return timings | {
        "e2e_tps": tokens / timings["timing/all"],
        "update_tps": tokens / timings["timing/update"],
        "vllm_tps": sums["response_tokens"] / ranks / timings["timing/rollout"],
    }
