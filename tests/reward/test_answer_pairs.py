"""python -m pytest tests/reward/test_answer_pairs.py

Labelled answers, by category: what equals what, and above all what does not."""

import collections

import math_verify.parser
import pytest
import sympy.parsing
import sympy.parsing.sympy_parser
from latex2sympy2_extended import latex2sympy2

from tests.reward.reward_data import forget, read_pairs

PAIRS = read_pairs()


class Reached(BaseException):
    """No `except Exception` of a library can hide it."""


def test_the_suite_is_large_and_every_category_has_its_share_of_wrong_answers():
    wrong = collections.Counter(pair.category for pair in PAIRS if not pair.right)
    total = collections.Counter(pair.category for pair in PAIRS)
    assert len(PAIRS) >= 400 and len(total) >= 25
    assert len({(pair.label, pair.answer) for pair in PAIRS}) == len(PAIRS)
    assert all(wrong[category] / total[category] >= 0.4 and total[category] >= 12 for category in total)


def test_no_wrong_answer_is_accepted(equal):
    assert [pair for pair in PAIRS if not pair.right and equal(pair.answer, pair.label)] == []


def test_at_least_99_percent_of_the_pairs_are_decided_rightly(equal):
    missed = [pair for pair in PAIRS if equal(pair.answer, pair.label) != pair.right]
    assert len(missed) <= 0.01 * len(PAIRS), missed


def test_nothing_of_the_whole_suite_reaches_an_evaluator(equal, monkeypatch):
    """sympy's `Number("5")` goes through `parse_expr` and `eval` as well; latex2sympy2 reads every numeral with it."""

    def evaluate(*arguments, **options):
        raise Reached(arguments)

    for module in (sympy, sympy.parsing, sympy.parsing.sympy_parser, math_verify.parser, latex2sympy2):
        monkeypatch.setattr(module, "parse_expr", evaluate)
    for name in ("eval_expr", "stringify_expr"):
        monkeypatch.setattr(sympy.parsing.sympy_parser, name, evaluate)
    forget()
    with pytest.raises(Reached):
        sympy.Number("5")
    assert sum(equal(pair.answer, pair.label) for pair in PAIRS) == sum(pair.right for pair in PAIRS)
