"""pytest tests/miniature/test_problems.py"""

import random
import re

import pytest

from r1zero.miniature import problems


def signed_digits(expression: str) -> list[int]:
    return [int(term) for term in re.findall(r"[+-]?\d", expression)]


def test_every_expression_is_there_once_and_its_answer_is_the_sum_of_its_signed_digits():
    found = problems.expressions()
    assert len(found) == len(set(found)) == 43_829
    for expression in found:
        digits = signed_digits(expression)
        totals = [sum(digits[:i]) for i in range(1, len(digits) + 1)]
        assert all(0 <= total <= problems.MAX_TOTAL for total in totals), expression
        assert problems.answer(expression) == str(totals[-1])
        assert [int(fact.split("=")[1]) for fact in problems.steps(expression)] == totals[1:]


def test_a_chain_of_thought_is_one_fact_a_step():
    assert problems.steps("7+8-3") == ["7+8=15", "15-3=12"]
    assert problems.prompt("7+8-3") == "Question: 7+8-3=?\nAssistant:\n"


def test_parts_are_disjoint_and_cover_all_expressions():
    parts = [{e for pool in by_terms.values() for e in pool} for by_terms in problems.split().values()]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 43_829


def test_shares_of_the_parts_are_as_stated():
    for name, by_terms in problems.split().items():
        share = 100 * sum(map(len, by_terms.values())) / 43_829
        assert share == pytest.approx(problems.SHARES[name], abs=1)


def test_the_part_of_an_expression_never_changes():
    """Worked once: a new hash or new shares would mix what old bases have read into the judgement of new ones."""
    parts = [problems.part(expression) for expression in ("7+8-3", "1+1", "9-9+6+4", "6+3+4")]
    assert parts == ["heldout", "corpus", "heldout", "train"]


def test_a_draw_is_unique_seeded_and_even_over_the_lengths():
    pool = problems.split()["train"]
    chosen = problems.draw(pool, 960, random.Random(3))
    assert chosen == problems.draw(pool, 960, random.Random(3))
    assert len(set(chosen)) == 960
    lengths = [sum(problems.terms(e) == n for e in chosen) for n in (2, 3, 4)]
    assert lengths[0] == len(pool[2]) and abs(lengths[1] - lengths[2]) <= 1


def test_rows_are_read_as_written(tmp_path):
    problems.write(tmp_path / "rows.jsonl", ["7+8-3"])
    assert problems.read(tmp_path / "rows.jsonl") == [{"problem": "7+8-3", "answer": "12"}]
