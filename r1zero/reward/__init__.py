"""Rewards by rules: mathematical equality and format, graded in worker processes that can be killed.

The package can be used on its own. Importing it loads only the standard library; the workers load the solver
(math-verify, sympy).

    with Scorer(rules={"base_acc": 1.0}, workers=2, deadline_s=5.0) as scorer:
        scorer.submit("first", response, label)      # starts grading
        scores = scorer.collect()                    # {"first": Score(outcome="scored", reward=1.0, ...)}
"""

from r1zero.config.errors import RewardError
from r1zero.reward.labels import LabelReport, LabelRow, check_labels
from r1zero.reward.scorer import Score, Scorer, Submission, check_rules
from r1zero.reward.unscored import dump_unscored, refuse_share

__all__ = [
    "LabelReport",
    "LabelRow",
    "RewardError",
    "Score",
    "Scorer",
    "Submission",
    "check_labels",
    "check_rules",
    "dump_unscored",
    "refuse_share",
]
