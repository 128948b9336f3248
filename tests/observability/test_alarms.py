"""Each alarm on a worked run that goes wrong at a known iteration, and none on a real run that went well."""

import csv
import math
import random
from pathlib import Path

import pytest

from r1zero.config import Alarms
from r1zero.observability.alarms import AlarmMonitor, averages, noise

HEALTHY = Path(__file__).parent.parent / "inputs" / "guard" / "quickstart.csv"
"""Columns of metrics.jsonl of a quick start (60 iterations, two ranks) whose reward went from 0.06 to 0.97."""


def healthy():
    with open(HEALTHY, encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def steady(count, **figures):
    """A run of `count` lines in which each figure follows a function of the iteration, with a hundredth of noise."""
    draw = random.Random(0)
    plain = {
        "grpo/rewards/mean": 0.4,
        "grpo/rewards/min": 0.0,
        "grpo/rewards/max": 1.0,
        "actor/pg_loss": -0.05,
        "actor/kl_loss": 0.002,
        "grad_norm": 0.3,
        "actor/entropy": 0.5,
        "rollout_gap/mean": 2e-3,
    }
    names = {**{k: (lambda i, v=v: v) for k, v in plain.items()}, **figures}
    exact = ("grpo/rewards/min", "grpo/rewards/max")
    return [
        {name: f(i) * (1.0 if name in exact else draw.uniform(0.99, 1.01)) for name, f in names.items()}
        for i in range(1, count + 1)
    ]


def rung(lines, cfg=Alarms()):
    """Iteration -> kinds of alarms that were said in it."""
    bell, said = AlarmMonitor(cfg, []), {}
    for i, line in enumerate(lines, 1):
        found, sentences = bell.see(i, line)
        if sentences:
            said[i] = sorted(kind.removeprefix("alarm/") for kind in found), sentences
    return said


def test_a_real_run_that_learned_rings_nothing():
    assert len(healthy()) == 60 and rung(healthy()) == {}


@pytest.mark.parametrize("seed", range(4))
def test_steady_noise_rings_nothing(seed):
    draw = random.Random(seed)
    lines = [
        {
            **line,
            "grpo/rewards/mean": 0.02 + draw.gauss(0, 0.008),
            "actor/pg_loss": draw.gauss(0, 0.03),
            "grad_norm": math.exp(draw.gauss(0, 0.5)),
            "format_rewards/mean": 0.5 + draw.gauss(0, 0.05),
            "acc_rewards/mean": -0.4 + draw.gauss(0, 0.05),
        }
        for line in steady(200)
    ]
    assert rung(lines) == {}


@pytest.mark.parametrize(
    "name, normal, spike", [("actor/pg_loss", -0.05, 3.0), ("actor/kl_loss", 0.002, 0.9), ("grad_norm", 0.3, 40.0)]
)
def test_a_spike_rings_once_with_its_figure(name, normal, spike):
    said = rung(steady(40, **{name: lambda i: spike if i == 25 else normal}))
    assert list(said) == [25] and said[25][0] == ["loss_spike"] and f"{name} = " in said[25][1][0]


def test_a_gradient_that_is_none_is_no_spike():
    lines = steady(40)
    lines[25]["grad_norm"] = math.inf
    assert rung(lines) == {}


def test_a_reward_that_collapses_after_its_best_rings_and_one_that_dips_does_not():
    lines = steady(60, **{"grpo/rewards/mean": lambda i: 0.1 + 0.02 * i if i <= 30 else 0.2})
    assert [kinds for kinds, _ in rung(lines).values()] == [["reward_collapse"]]
    (iteration,), ((_, (sentence,)),) = rung(lines).keys(), rung(lines).values()
    assert 31 <= iteration <= 33 and "at iteration 28" in sentence
    assert rung(steady(60, **{"grpo/rewards/mean": lambda i: 0.1 + 0.02 * i if i <= 30 else 0.5})) == {}


def test_a_collapse_is_seen_where_rewards_are_negative():
    figures = {"grpo/rewards/min": lambda i: -1.0, "grpo/rewards/mean": lambda i: -0.2 if i <= 30 else -0.8}
    assert [kinds for kinds, _ in rung(steady(60, **figures)).values()] == [["reward_collapse"]]


def test_format_that_rises_while_accuracy_falls_rings():
    figures = {"format_rewards/mean": lambda i: 0.2 + 0.01 * i, "acc_rewards/mean": lambda i: 0.5 - 0.006 * i}
    said = rung(steady(60, **figures))
    assert [kinds for kinds, _ in said.values()] == [["format_without_accuracy"]]
    assert "format rose from" in next(iter(said.values()))[1][0]
    assert rung(steady(60, **figures | {"acc_rewards/mean": lambda i: 0.2 + 0.006 * i})) == {}


def test_a_gap_that_grows_to_three_times_its_first_rings_but_not_within_rounding():
    said = rung(steady(80, **{"rollout_gap/mean": lambda i: 2e-3 * 1.03**i}))
    assert [kinds for kinds, _ in said.values()] == [["gap_growth"]]
    assert rung(steady(80, **{"rollout_gap/mean": lambda i: 1e-7 * 1.03**i})) == {}


def test_a_gap_above_its_limit_rings_from_the_start():
    lines = steady(12, **{"rollout_gap/mean": lambda i: 0.2})
    said = rung(lines, Alarms(highest_gap=0.05))
    assert {i: kinds for i, (kinds, _) in said.items()} == {Alarms().window: ["gap_too_large"]}
    assert rung(lines, Alarms(highest_gap=0.3)) == {}


def test_lost_entropy_rings_at_a_low_reward_and_is_success_at_a_high_one():
    figures = {"actor/entropy": lambda i: 0.5 * 0.9**i}
    assert [kinds for kinds, _ in rung(steady(60, **figures)).values()] == [["entropy_collapse"]]
    assert rung(steady(60, **figures, **{"grpo/rewards/mean": lambda i: 0.9})) == {}


def test_a_run_that_goes_on_does_not_repeat_alarms_and_knows_what_came_before():
    lines = steady(60, **{"grpo/rewards/mean": lambda i: 0.6 if i <= 30 else 0.1})
    resumed = AlarmMonitor(Alarms(), [{"iteration": i, **line} for i, line in enumerate(lines[:40], 1)])
    assert [resumed.see(i, line)[1] for i, line in enumerate(lines[40:], 41)] == [[]] * 20
    early = AlarmMonitor(Alarms(), lines[:30])
    assert any(early.see(i, line)[1] for i, line in enumerate(lines[30:], 31))


def test_iterations_without_any_score_ring_nothing():
    nothing = {
        "grpo/rewards/mean": lambda i: 0.0,
        "grpo/rewards/min": lambda i: math.inf,
        "grpo/rewards/max": lambda i: -math.inf,
    }
    assert rung(steady(40, **nothing, **{"actor/entropy": lambda i: 0.5 * 0.9**i})) == {}


def test_without_a_window_there_are_no_alarms():
    assert rung(steady(60, **{"grpo/rewards/mean": lambda i: 0.6 if i <= 30 else 0.1}), Alarms(window=0)) == {}


def test_noise_is_that_of_the_values_and_not_of_their_trend():
    draw = random.Random(1)
    values = [0.5 * i + draw.gauss(0, 3.0) for i in range(5000)]
    assert noise(values) == pytest.approx(3.0, rel=0.05)
    assert averages([1.0, 2.0, 6.0], 2) == [1.5, 4.0]
