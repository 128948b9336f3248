"""From an iteration's samples and losses to its named figures. Names are MindSpeed-RL's (docs/zh/features/log_metrics.md there)."""


import torch

from r1zero import grpo
from r1zero.config import Config
from r1zero.grading import Samples
from r1zero.observability.metrics import Tally
from r1zero.policy import SUMS

SPREADS = ("rewards", "response_length", "prompt_length")


def tally(t: Tally, cfg: Config, samples: Samples | None, table: torch.Tensor | None) -> None:
    """This engine's figures, by its first rank; all other ranks name the same figures with nothing in them."""
    names = list(cfg.reward.rules)
    sums = ["samples", "scored", "timeouts", "failures", "reward", "constant_groups", "groups", "clipped_responses",
            "prompt_tokens", "response_tokens", *(f"rule/{n}" for n in names)]
    for name in sums:
        t.add(name, 0.0)
    for name in SPREADS:
        t.peak(f"{name}/max", float("-inf"))
        t.peak(f"{name}/-min", float("-inf"))
    if samples is None:
        return
    scored = table[:, 1] == 0
    rewards = table[scored, 0]
    lengths = [len(r.token_ids) for r in samples.responses]
    prompts = [len(samples.prompts[r.prompt].token_ids) for r in samples.responses]
    constant = grpo.without_spread(table[:, 0].reshape(-1, cfg.grpo.group_size), scored.reshape(-1, cfg.grpo.group_size))
    values = [len(table), scored.sum(), (table[:, 1] == 1).sum(), (table[:, 1] == 2).sum(), rewards.sum(), constant.sum(), len(constant),
              sum(r.finish_reason == "length" for r in samples.responses), sum(prompts), sum(lengths), *table[scored, 2:].sum(0)]
    for name, value in zip(sums, values, strict=True):
        t.add(name, float(value))
    for name, figures in zip(SPREADS, (rewards.tolist(), lengths, prompts), strict=True):
        if figures:
            t.peak(f"{name}/max", max(figures))
            t.peak(f"{name}/-min", -min(figures))


def tally_training(t: Tally, trained: dict[str, float]) -> None:
    """trained: Policy.update's figures on a rank that trains; all others pass an empty dict."""
    for name in SUMS:
        t.add(f"actor/{name}", trained.get(name, 0.0))
    t.peak("gap", trained.get("gap_max", 0.0))
    t.peak("grad_norm", trained.get("grad_norm", 0.0))
    t.peak("lr", trained.get("lr", 0.0))
    t.peak("skipped", trained.get("skipped", 0.0))


def named(cfg: Config, sums: dict[str, float], peaks: dict[str, float], loss_tokens: float) -> dict[str, float]:
    """Means over samples, groups or tokens; lengths in tokens. Unlike MindSpeed-RL's, actor/pg_loss is signed and free of KL."""
    scored, tokens = max(sums["scored"], 1.0), max(loss_tokens, 1.0)
    means = {"rewards": sums["reward"] / scored, "response_length": sums["response_tokens"] / sums["samples"],
             "prompt_length": sums["prompt_tokens"] / sums["samples"]}
    metrics: dict[str, float] = {}
    for name in SPREADS:
        prefix = "grpo/rewards" if name == "rewards" else name
        metrics |= {f"{prefix}/mean": means[name], f"{prefix}/max": peaks[f"{name}/max"], f"{prefix}/min": -peaks[f"{name}/-min"]}
    for rule in cfg.reward.rules:
        metrics[f"{rule}_rewards/mean"] = sums[f"rule/{rule}"] / scored
    return metrics | {
        "frac_reward_zero_std": sums["constant_groups"] / sums["groups"],
        "response_length/clip_ratio": sums["clipped_responses"] / sums["samples"],
        "reward/timeouts": sums["timeouts"], "reward/failures": sums["failures"],
        "actor/pg_loss": sums["actor/pg_loss"] / tokens, "actor/kl_loss": sums["actor/kl"] / tokens,
        "actor/entropy": sums["actor/entropy"] / tokens, "actor/pg_clipfrac": sums["actor/clipped"] / tokens,
        "actor/ppo_kl": sums["actor/ppo_kl"] / tokens, "actor/lr": peaks["lr"], "grad_norm": peaks["grad_norm"],
        "update/skipped": peaks["skipped"], "update/empty": float(not loss_tokens),
        "rollout_gap/mean": sums["actor/gap"] / tokens, "rollout_gap/max": peaks["gap"],
    }


def speeds(sums: dict[str, float], timings: dict[str, float], ranks: int) -> dict[str, float]:
    """Tokens a second and rank (on Ascend: a die): of the whole iteration, of the update, and of responses in the rollout."""
    tokens = (sums["prompt_tokens"] + sums["response_tokens"]) / ranks
    return timings | {"e2e_tps": tokens / timings["timing/all"], "update_tps": tokens / timings["timing/update"],
                      "vllm_tps": sums["response_tokens"] / ranks / timings["timing/rollout"]}
