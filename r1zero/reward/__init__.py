"""Rewards by rule: mathematical equality and format, graded in killable worker processes.

Usable on its own: importing it loads the standard library only, the workers add the solver (math-verify, sympy).
"""

from r1zero.reward.score import RewardError, Score, Scorer

__all__ = ["RewardError", "Score", "Scorer"]
