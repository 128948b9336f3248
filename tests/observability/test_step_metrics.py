"""Figures of an iteration: unscored samples are not zeros, and the record of a run is JSON whatever happens."""

import json
import math

import pytest
import torch

from r1zero.batch import Prompt, Response
from r1zero.config import Config, Grpo
from r1zero.grading import Graded, Samples
from r1zero.observability import metrics, step_metrics

P, G = 16, 4
CFG = Config(grpo=Grpo(group_size=G))
SCORED, TIMEOUT = 0, 1


def tallied(rewards_B: list[float], outcomes_B: list[int], datasets: tuple[str, ...] = ()) -> dict[str, float]:
    """Named figures of P x G samples with these rewards. datasets: sources; the last one has no prompt."""
    prompts = [Prompt(p, (1, 2), "1", "1+0=?", dataset=(datasets or ("",))[p % 2 if datasets else 0]) for p in range(P)]
    responses = [Response(p, g, [3], [0.0], "stop") for p in range(P) for g in range(G)]
    rewards, outcomes = torch.tensor(rewards_B, dtype=torch.float64), torch.tensor(outcomes_B)
    reducer = metrics.MetricReducer()
    step_metrics.add_samples(
        reducer,
        CFG,
        Samples(prompts, responses, 0),
        Graded(
            rewards, outcomes == SCORED, outcomes, dict.fromkeys(CFG.reward.rules, rewards), torch.zeros(len(rewards))
        ),
        datasets,
    )
    step_metrics.add_update(reducer, {})
    return step_metrics.step_metrics(CFG, reducer.sums, reducer.peaks, 64.0)


def test_a_group_whose_scored_rewards_are_equal_has_no_spread_whatever_was_not_scored():
    # One sample in each of 9 groups, and all of the last one, are not scored; the table holds 0.0 for them.
    unscored = {G * p for p in range(9)} | set(range(G * (P - 1), G * P))
    rewards = [0.0 if i in unscored else 1.0 for i in range(P * G)]
    outcomes = [TIMEOUT if i in unscored else SCORED for i in range(P * G)]
    assert tallied(rewards, outcomes)["frac_reward_zero_std"] == 1.0
    rewards[1] = 0.0  # the first group now has rewards 0, 1, 1
    assert tallied(rewards, outcomes)["frac_reward_zero_std"] == (P - 1) / P


@pytest.mark.parametrize("scored", [True, False])
def test_metrics_are_json_also_where_nothing_was_scored(tmp_path, scored):
    found = tallied([1.0] * P * G, [SCORED if scored else TIMEOUT] * P * G)
    metrics.append(tmp_path / "metrics.jsonl", 1, [found])
    (line,) = (tmp_path / "metrics.jsonl").read_text().rstrip("\n").split("\n")
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["grpo/rewards/max"] == (1.0 if scored else None)
    assert math.isnan(metrics.read(tmp_path)[0]["grpo/rewards/max"]) != scored


def test_each_of_several_sources_has_the_mean_of_its_graded_responses():
    rewards = [float(i // G % 2 + (i % G == 0)) for i in range(P * G)]  # 1.25 or 0.25 on average, by source
    outcomes = [TIMEOUT if i % G == 0 and i >= G * P // 2 else SCORED for i in range(P * G)]
    found = tallied(rewards, outcomes, ("even", "odd", "none"))
    sources = {name: value for name, value in found.items() if name.startswith("reward/source/")}
    without = 8 * (3 * 0 + 1) / (8 * G - 4) - 4 / (8 * G - 4)
    assert sources["reward/source/even"] == pytest.approx(without)
    assert sources["reward/source/odd"] == pytest.approx(1 + without)
    assert math.isnan(sources["reward/source/none"]) and len(sources) == 3
    assert not [name for name in tallied(rewards, outcomes) if name.startswith("reward/source/")]
