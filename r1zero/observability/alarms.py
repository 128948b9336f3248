"""Alarms on metrics that deteriorate: pure functions of a run's metrics, each returning a sentence or None.

A run is a list of lines as in metrics.jsonl, the newest last. The functions compare means over a few lines, and
estimate the noise of a metric from its changes between neighbouring lines, so that a healthy curve, rising or level,
raises no alarm.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, sqrt
from statistics import mean, median

from r1zero.config import Alarms

Line = Mapping[str, float]
Run = Sequence[Line]
Finding = str | None

FORMAT_RULES = ("format", "strict_format")
ACCURACY_RULES = ("acc", "base_acc", "math_17k_acc")
SURE = 4.0
"""Number of standard errors that noise does not reach within the length of a run."""


def of(run: Run, name: str) -> list[float]:
    """Returns the finite values of a metric."""
    return [line[name] for line in run if isfinite(line.get(name, float("nan")))]


def noise(values: Sequence[float]) -> float:
    """Returns the standard deviation of a value around its trend, estimated from differences of neighbours."""
    steps = [(b - a) ** 2 for a, b in itertools.pairwise(values)]
    return sqrt(mean(steps) / 2) if steps else 0.0


def averages(values: Sequence[float], width: int) -> list[float]:
    """Returns the running means over `width` values."""
    return [mean(values[i : i + width]) for i in range(len(values) - width + 1)]


def loss_spike(run: Run, cfg: Alarms) -> Finding:
    """Detects a part of the loss, or the gradient norm, far outside its range over the window before."""
    for name in ("actor/pg_loss", "actor/kl_loss", "grad_norm"):
        values = of(run, name)
        if len(values) <= cfg.window or values[-1] != run[-1].get(name):
            continue
        *before, now = values[-cfg.window - 1 :]
        middle = median(before)
        spread = max(*(abs(v - middle) for v in before), 0.1 * median(map(abs, values)), 1e-3)
        if abs(now - middle) > cfg.spike_factor * spread:
            return (
                f"{name} = {now:.3g}, but over the {cfg.window} iterations before it was {middle:.3g} +- {spread:.2g}: "
                "inspect samples.jsonl, and lower optimizer.lr or optimizer.clip_grad if it happens again"
            )
    return None


def reward_collapse(run: Run, cfg: Alarms) -> Finding:
    """Detects that the mean reward has lost much of its rise above the lowest reward."""
    values, few = of(run, "grpo/rewards/mean"), max(2, cfg.window // 3)
    if len(values) < cfg.window + few:
        return None
    means = averages(values, few)
    best, now, lowest = max(means), means[-1], min(of(run, "grpo/rewards/min"), default=0.0)
    lost = best - now > cfg.collapse_share * (best - lowest)
    # The best of many means lies above their centre by as much as noise allows, and the latest may lie as far below.
    if lost and best - now > 2 * SURE * noise(values) / sqrt(few):
        return (
            f"the mean reward fell to {now:.3g}, from {best:.3g} at iteration {_iteration(run, means.index(best))}: "
            "go back to a checkpoint of that time, with a lower optimizer.lr or a higher grpo.kl_coef"
        )
    return None


def format_without_accuracy(run: Run, cfg: Alarms) -> Finding:
    """Detects a format rule that rises while an accuracy rule falls, over the last two windows."""
    changes = {}
    for rule in FORMAT_RULES + ACCURACY_RULES:
        values = of(run, f"{rule}_rewards/mean")[-2 * cfg.window :]
        if len(values) == 2 * cfg.window:
            early, late = mean(values[: cfg.window]), mean(values[cfg.window :])
            sure = abs(late - early) > SURE * noise(values) * sqrt(2 / cfg.window)
            changes[rule] = (early, late, sure)
    rising = [
        rule for rule in FORMAT_RULES if rule in changes and changes[rule][2] and changes[rule][1] > changes[rule][0]
    ]
    falling = [
        rule for rule in ACCURACY_RULES if rule in changes and changes[rule][2] and changes[rule][1] < changes[rule][0]
    ]
    if not rising or not falling:
        return None
    up, down = changes[rising[0]], changes[falling[0]]
    return (
        f"{rising[0]} rose from {up[0]:.3g} to {up[1]:.3g} while {falling[0]} fell from {down[0]:.3g} to "
        f"{down[1]:.3g} over "
        f"{2 * cfg.window} iterations: lower the weight of {rising[0]} in reward.rules, and inspect samples.jsonl"
    )


def gap_growth(run: Run, cfg: Alarms) -> Finding:
    """Detects that the gap between the logprobs of trainer and engines is a multiple of its first value."""
    values = of(run, "rollout_gap/mean")
    if len(values) < 2 * cfg.window:
        return None
    then, now = median(values[: cfg.window]), median(values[-cfg.window :])
    if now > cfg.gap_factor * then and now > cfg.least_gap:
        return (
            f"rollout_gap/mean is {now:.2g}, but was {then:.2g} in the first {cfg.window} iterations: engines and "
            "trainer drift apart; set parity.every_syncs = 1 to see after which sync, and where"
        )
    return None


def gap_too_large(run: Run, cfg: Alarms) -> Finding:
    """Detects a gap between the logprobs of trainer and engines that is beyond the range of sound runs."""
    values = of(run, "rollout_gap/mean")
    if len(values) < cfg.window:
        return None
    now = median(values[-cfg.window :])
    if now > cfg.highest_gap > 0:
        return (
            f"rollout_gap/mean is {now:.2g} over the last {cfg.window} iterations, and alarms.highest_gap is "
            f"{cfg.highest_gap:.2g}: engines and trainer compute different logprobs; set parity.every_syncs = 1 to see "
            "where"
        )
    return None


def entropy_collapse(run: Run, cfg: Alarms) -> Finding:
    """Detects that little entropy is left while the reward is low, so that exploration has stopped.

    Low entropy at a high reward is success.
    """
    values, rewards = of(run, "actor/entropy"), of(run, "grpo/rewards/mean")
    if len(values) < 2 * cfg.window or len(rewards) < cfg.window:
        return None
    first, now, reward = mean(values[: cfg.window]), mean(values[-cfg.window :]), mean(rewards[-cfg.window :])
    lowest, highest = min(of(run, "grpo/rewards/min"), default=0.0), max(of(run, "grpo/rewards/max"), default=0.0)
    if now < cfg.entropy_share * first and reward < (lowest + highest) / 2:
        return (
            f"actor/entropy is {now:.2g}, but was {first:.2g}, at a mean reward of {reward:.2g} of {highest:.2g}: the "
            "policy has stopped exploring; go back to an older checkpoint with a lower optimizer.lr or a higher "
            "rollout.temperature"
        )
    return None


KINDS: dict[str, Callable[[Run, Alarms], Finding]] = {
    "loss_spike": loss_spike,
    "reward_collapse": reward_collapse,
    "format_without_accuracy": format_without_accuracy,
    "gap_growth": gap_growth,
    "gap_too_large": gap_too_large,
    "entropy_collapse": entropy_collapse,
}


def _iteration(run: Run, index: int) -> int:
    return int(run[index].get("iteration", index + 1))


class AlarmMonitor:
    """The metrics of the run so far and the alarms that are on. Used by the rank that writes metrics."""

    def __init__(self, cfg: Alarms, before: list[dict[str, float]]):
        """before: the metrics of the run that this one continues."""
        self.cfg, self.run = cfg, before
        self.on: set[str] = set(self._find()) if before else set()

    def _find(self) -> dict[str, str]:
        return (
            {kind: said for kind, find in KINDS.items() if (said := find(self.run, self.cfg))}
            if self.cfg.window
            else {}
        )

    def see(self, iteration: int, metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
        """Add an iteration. Returns `alarm/<kind>` = 1.0 for each alarm that is on, and a message for each new one."""
        self.run.append({"iteration": iteration, **metrics})
        found = self._find()
        lines = [f"alarm, iteration {iteration}: {said}" for kind, said in found.items() if kind not in self.on]
        self.on = set(found)
        return {f"alarm/{kind}": 1.0 for kind in found}, lines
