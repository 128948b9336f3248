"""python -m pytest tests/reward/test_held_out.py

Pairs that were generated without a look at the grader, by three scripts: one kind after the other, in the spellings of
school collections and of models' boxes, and expressions that sympy rewrote and printed. Right ones are equal by
construction, wrong ones differ by a change of value (an exponent or a digit off by one, a sign, a swap, an end open or
closed, another unit, a solution left out)."""

import collections

from tests.reward.reward_data import read_pairs

PAIRS = read_pairs("heldout.tsv")


def test_the_suite_has_enough_of_every_kind():
    kinds = collections.Counter((pair.category, pair.right) for pair in PAIRS)
    assert len(PAIRS) >= 1500 and len(kinds) >= 80 and sum(n >= 9 for n in kinds.values()) >= 0.9 * len(kinds)
    assert len({(pair.label, pair.answer) for pair in PAIRS}) == len(PAIRS)


def test_no_wrong_answer_is_accepted_and_under_two_percent_of_the_right_ones_are_refused(equal):
    accepted = [pair for pair in PAIRS if not pair.right and equal(pair.answer, pair.label)]
    refused = [pair for pair in PAIRS if pair.right and not equal(pair.answer, pair.label)]
    right = sum(pair.right for pair in PAIRS)
    print(f"{len(PAIRS) - right} wrong answers, {len(accepted)} accepted; {right} right ones, {len(refused)} refused")
    assert accepted == []
    assert len(refused) < 0.02 * right, refused
