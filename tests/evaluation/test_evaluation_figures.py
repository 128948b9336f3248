"""The formulas of an evaluation against worked numbers and against counting every case.

python -m pytest tests/evaluation/test_evaluation_figures.py
"""

import doctest
from itertools import combinations

import numpy as np
import pytest

from r1zero.config import CollectiveError, Config, Evaluation, EvaluationSet
from r1zero.evaluation import figures, sets
from r1zero.evaluation.best import Best
from r1zero.evaluation.figures import NO_VOTE, Outcomes
from r1zero.reward import Scorer


@pytest.mark.parametrize("samples", range(1, 7))
def test_pass_at_k_is_the_share_of_all_choices_of_k_responses_that_hold_a_correct_one(samples):
    for correct in range(samples + 1):
        for k in range(1, samples + 1):
            chosen = list(combinations([True] * correct + [False] * (samples - correct), k))
            share = sum(map(any, chosen)) / len(chosen)
            assert figures.pass_at_k(samples, correct, k) == pytest.approx(share, abs=1e-15)


def test_pass_at_k_is_exact_where_the_product_form_in_floating_point_is_not():
    assert figures.pass_at_k(1024, 1, 512) == 0.5 and figures.pass_at_k(1024, 0, 1024) == 0.0


@pytest.mark.parametrize(
    "groups, equal, right",
    [
        ([0, 0, 1], [True, True, False], True),
        ([0, 1, 1], [True, False, False], False),
        ([0, 1, 1, 0], [True, False, False, True], True),  # two against two: the first that was given
        ([NO_VOTE, NO_VOTE, 0], [False, False, True], True),  # a response without an answer has no vote
        ([NO_VOTE, NO_VOTE], [False, False], False),
    ],
)
def test_the_majority_is_the_largest_group_of_equal_answers(groups, equal, right):
    assert figures.majority_is_right(groups, equal) is right


def test_a_set_with_known_answers_has_the_figures_worked_out_by_hand():
    """Three prompts, four responses each: 4, 1 and 0 of them correct."""
    correct = np.array([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    no = np.zeros_like(correct)
    outcomes = Outcomes(
        correct=correct,
        equal=correct,
        in_format=np.array([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool),
        truncated=np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=bool),
        unscored=no,
        lengths=np.array([[10, 20, 30, 40], [5, 5, 5, 5], [60, 60, 0, 60]]),
        groups=np.array([[0, 0, 0, 0], [0, 1, 0, 2], [NO_VOTE, NO_VOTE, 0, NO_VOTE]]),
    )
    found = figures.compute(outcomes)
    assert list(found) == figures.names(4)
    assert found["pass@1"] == found["avg@4"] == pytest.approx(5 / 12)
    assert [found[f"pass@{k}"] for k in (2, 3, 4)] == pytest.approx([1.5 / 3, 1.75 / 3, 2 / 3])
    assert found["maj@4"] == pytest.approx(1 / 3)
    assert found["response_length/mean"] == 25.0
    assert (found["truncated"], found["format"], found["unscored"]) == (0.25, pytest.approx(4 / 12), 0.0)
    assert found["pass@1/low"] <= found["pass@1"] <= found["pass@1/high"]


def test_the_interval_is_the_same_every_time_and_as_wide_as_the_normal_approximation_says():
    rates = (np.arange(400) < 120).astype(float)
    low, high = figures.interval(rates)
    assert (low, high) == figures.interval(rates)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert low == pytest.approx(0.3 - half, abs=0.008) and high == pytest.approx(0.3 + half, abs=0.008)
    assert figures.interval(np.ones(7)) == (1.0, 1.0)


def test_answers_are_grouped_by_the_equality_of_the_reward():
    with Scorer({"base_acc": 1.0}, 1, 5.0) as scorer:
        grouped = scorer.group({"a": ["0.5", "3", r"\frac{1}{2}", "3.0", "x"], "b": ["1/3", "0.3"], "c": []})
        assert grouped == {"a": [0, 1, 0, 1, 2], "b": [0, 1], "c": []}
        scorer.submit("one", r"<think>x</think><answer>\boxed{3}</answer>", "3")
        assert scorer.collect()["one"].reward == 1.0


def test_the_best_iteration_is_the_first_with_the_highest_value_and_never_the_untrained_model():
    best = Best("eval/a/pass@1")
    seen = [best.see(i, {"eval/a/pass@1": v}) for i, v in enumerate([0.9, 0.5, 0.5, 0.7, 0.6])]
    assert seen == [False, True, False, True, False] and best.state() == {"best": (3, 0.7)}
    again = Best("eval/a/pass@1")
    again.load(best.state())
    assert not again.see(5, {"eval/a/pass@1": 0.7}) and not again.see(6, {}) and again.see(7, {"eval/a/pass@1": 0.8})
    assert Best("").state() == {} and not Best("").see(1, {})


def test_a_value_that_is_not_a_number_is_never_the_best():
    best, nan = Best("eval/a/pass@1"), float("nan")
    assert not best.see(1, {"eval/a/pass@1": nan}) and best.state() == {}
    assert best.see(2, {"eval/a/pass@1": 0.1}) and not best.see(3, {"eval/a/pass@1": nan}) and best.iteration == 2
    best = Best("eval/a/pass@1")
    best.load({"best": (4, nan)})  # of a checkpoint of an earlier version
    assert best.state() == {} and best.see(5, {"eval/a/pass@1": 0.1})


def config_with_best(metric):
    two = {"a": EvaluationSet(path="x", samples=3, temperature=1.0), "b": EvaluationSet(path="x")}
    return Config(evaluation=Evaluation(sets=two, best=metric))


@pytest.mark.parametrize("name", figures.names(3))
def test_only_a_metric_for_which_higher_is_better_selects_a_checkpoint(name):
    cfg = config_with_best(f"eval/a/{name}")
    if name in ("pass@1", "pass@2", "pass@3", "avg@3", "maj@3", "format"):
        sets.check_best(cfg)
        return
    with pytest.raises(CollectiveError) as error:
        sets.check_best(cfg)
    allowed = "a/pass@1, a/pass@2, a/pass@3, a/avg@3, a/maj@3, a/format, b/pass@1, b/format".replace("a/", "eval/a/")
    assert str(error.value) == (
        f"evaluation.best = 'eval/a/{name}' is not a metric of this run for which higher is better; it must be one of "
        + allowed.replace("b/", "eval/b/")
    )


def test_the_examples_in_the_documentation_are_right():
    assert doctest.testmod(figures).failed == 0
