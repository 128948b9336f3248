"""The figures of an evaluation as pure functions of what became of each response.

pass@k is the unbiased estimate of Chen et al., "Evaluating Large Language Models Trained on Code" (2021), equation 1:
the probability that at least one of k responses, drawn without replacement from the n that were sampled, is correct.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

RESAMPLES, LEVEL = 1000, 0.95
"""Of the bootstrap: how often the prompts are drawn anew, and how many of the means the interval holds."""
BOOTSTRAP_SEED = 0
NO_VOTE = -1


@dataclass(frozen=True)
class Outcomes:
    """What became of n responses to each of P prompts; every field has the shape (P, n)."""

    correct: NDArray[np.bool_]
    """By evaluation.correct; False for a response that could not be graded."""
    equal: NDArray[np.bool_]
    """Whether the last box equals the label, by which the majority is judged."""
    in_format: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    """Whether the response reached the longest length without ending."""
    unscored: NDArray[np.bool_]
    """Whether grading failed or took too long."""
    lengths: NDArray[np.int64]
    """Tokens."""
    groups: NDArray[np.int64]
    """Answers of one prompt with the same number are equal; NO_VOTE: the response has no box."""


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that k of `samples` responses, of which `correct` are correct, hold at least one that is correct.

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 2, 2), pass_at_k(4, 1, 4)
    (0.25, 0.5, 0.8333333333333334, 1.0)
    """
    # An integer over an integer, so that the only rounding is the last one.
    every = comb(samples, k)
    return (every - comb(samples - correct, k)) / every


def majority_is_right(groups: Sequence[int], equal: Sequence[bool]) -> bool:
    """Whether the answer that most responses gave equals the label. Of groups of one size the earliest counts.

    >>> majority_is_right([0, 1, 1, NO_VOTE], [True, False, False, False])
    False
    """
    votes = Counter(group for group in groups if group != NO_VOTE)  # in order of first appearance
    if not votes:
        return False
    winner = max(votes, key=votes.__getitem__)
    return bool(equal[list(groups).index(winner)])


def interval(rates: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile bootstrap of the mean of the prompts' pass rates: (low, high) at LEVEL. The same values every time."""
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    means = [float(rates[generator.integers(0, len(rates), len(rates))].mean()) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def names(samples: int) -> list[str]:
    """The names of `compute`'s figures, for so many responses to each prompt."""
    several = [*(f"pass@{k}" for k in range(2, samples + 1)), f"avg@{samples}", f"maj@{samples}"] if samples > 1 else []
    return ["pass@1", "pass@1/low", "pass@1/high", *several, "response_length/mean", "truncated", "format", "unscored"]


def compute(outcomes: Outcomes) -> dict[str, float]:
    """Shares, probabilities and tokens, by the names of `names`.

    pass@1 is the mean over prompts of the share of correct responses; where responses are greedy there is one of them.
    avg@n has the same value, under the name by which tables give it.
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
