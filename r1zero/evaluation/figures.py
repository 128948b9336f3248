"""The metrics of an evaluation, as pure functions of the outcome of each response.

pass@k is the unbiased estimator of Chen et al., "Evaluating Large Language Models Trained on Code" (2021), equation 1:
the probability that at least one of k responses, drawn without replacement from the n that were sampled, is correct.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

RESAMPLES, LEVEL = 1000, 0.95
"""Number of bootstrap resamples, and confidence level of the interval."""
BOOTSTRAP_SEED = 0
HIGHER_IS_BETTER = re.compile(r"(pass|avg|maj)@\d+|format")
"""The metrics of `names` by which evaluation.best may select a checkpoint."""
NO_VOTE = -1
"""Group of a response that contains no answer."""


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of n responses to each of P prompts. Every field has the shape (P, n)."""

    correct: NDArray[np.bool_]
    """Whether the response is correct, as evaluation.correct defines it. False if it could not be graded."""
    equal: NDArray[np.bool_]
    """Whether the answer in the last box equals the label. The majority vote is judged by this."""
    in_format: NDArray[np.bool_]
    """Whether the response has the format that the rule base_acc requires."""
    truncated: NDArray[np.bool_]
    """Whether the response was cut off at the maximum number of tokens."""
    unscored: NDArray[np.bool_]
    """Whether grading failed or timed out."""
    lengths: NDArray[np.int64]
    """Length of the response in tokens."""
    groups: NDArray[np.int64]
    """Responses to the same prompt with equal answers have the same number. NO_VOTE: the response has no box."""


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Returns the probability that at least one of k responses is correct.

    The k responses are drawn without replacement from `samples` responses, of which `correct` are correct.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 2, 2), pass_at_k(4, 1, 4)
    (0.25, 0.5, 0.8333333333333334, 1.0)
    """
    # The quotient of two integers, so that only the division rounds.
    every = comb(samples, k)
    return (every - comb(samples - correct, k)) / every


def majority_is_right(groups: Sequence[int], equal: Sequence[bool]) -> bool:
    """Returns whether the most frequent answer equals the label. Of equally frequent answers, the earliest wins.

    groups, equal: the rows of one prompt in Outcomes. Without any answer the result is False.

    >>> majority_is_right([0, 1, 1, NO_VOTE], [True, False, False, False])
    False
    """
    votes = Counter(group for group in groups if group != NO_VOTE)  # in order of first appearance
    if not votes:
        return False
    winner = max(votes, key=votes.__getitem__)
    return bool(equal[list(groups).index(winner)])


def interval(rates: NDArray[np.float64]) -> tuple[float, float]:
    """Returns (low, high), the confidence interval of the mean pass rate by percentile bootstrap over the prompts.

    rates: pass rate of each prompt, (P,). The seed is fixed, so that equal rates always give the same interval.
    """
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = [float(rates[generator.integers(0, len(rates), len(rates))].mean()) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def names(samples: int) -> list[str]:
    """Returns the names of the metrics of `compute`. samples: number of responses to each prompt."""
    several = [*(f"pass@{k}" for k in range(2, samples + 1)), f"avg@{samples}", f"maj@{samples}"] if samples > 1 else []
    return ["pass@1", "pass@1/low", "pass@1/high", *several, "response_length/mean", "truncated", "format", "unscored"]


def compute(outcomes: Outcomes) -> dict[str, float]:
    """Returns the metrics by name, as listed by `names`.

    response_length/mean is in tokens; all others are shares or probabilities from 0 to 1. pass@1 is the mean over
    prompts of the share of correct responses. avg@n is the same value under the name that is common in result tables.
    """
    samples = outcomes.correct.shape[1]
    correct_P = outcomes.correct.sum(axis=1)
    rates_P = correct_P / samples
    low, high = interval(rates_P)
    found = {"pass@1": float(rates_P.mean()), "pass@1/low": low, "pass@1/high": high}
    if samples > 1:
        counts = Counter(correct_P.tolist())
        for k in range(2, samples + 1):
            found[f"pass@{k}"] = sum(pass_at_k(samples, c, k) * many for c, many in counts.items()) / len(correct_P)
        votes = zip(outcomes.groups.tolist(), outcomes.equal.tolist(), strict=True)
        found[f"avg@{samples}"] = found["pass@1"]
        found[f"maj@{samples}"] = sum(majority_is_right(g, e) for g, e in votes) / len(correct_P)
    return found | {
        "response_length/mean": float(outcomes.lengths.mean()),
        "truncated": float(outcomes.truncated.mean()),
        "format": float(outcomes.in_format.mean()),
        "unscored": float(outcomes.unscored.mean()),
    }
