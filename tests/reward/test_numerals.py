"""python -m pytest tests/reward/test_numerals.py

Plain numbers are decided without a parser, as math-verify would decide them."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig

from r1zero.reward.equality.numerals import ends, numeral, same

integers = st.integers(-(10**9), 10**9)
plain = integers.map(str)
separated = st.integers(1000, 10**9).map("{:,}".format)
decimals = st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), st.integers(0, 999), st.integers(0, 10**7))
fractions = st.builds(r"{}\frac{{{}}}{{{}}}".format, st.sampled_from(["", "-"]), st.integers(0, 99), st.integers(1, 99))
slashes = st.builds("{}/{}".format, st.integers(-99, 99), st.integers(1, 99))
mixed = st.builds(r"{}\frac{{{}}}{{{}}}".format, st.integers(1, 99), st.integers(1, 9), st.integers(1, 9))
numerals = st.one_of(plain, separated, decimals, fractions, slashes, mixed)
small = st.one_of(
    st.integers(-12, 12).map(str),
    st.builds(r"\frac{{{}}}{{{}}}".format, st.integers(-12, 12), st.integers(1, 12)),
    st.builds(lambda p, q, n: f"{round(p / q, n):.{n}f}", st.integers(-12, 12), st.integers(1, 12), st.integers(1, 7)),
)


def math_verify(label: str, answer: str) -> bool:
    gold, pred = (parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None) for text in (label, answer))
    return verify(gold, pred, timeout_seconds=None)


def agree_with_math_verify(a: str, b: str) -> None:
    """We may refuse what it rounds (decimals that end and differ, tiny numbers), and accept nothing that it refuses."""
    ours, theirs = same(numeral(a), numeral(b)), math_verify(a, b)
    if ours != theirs:
        x, y = numeral(a).value, numeral(b).value
        assert theirs and x != y, (a, b)
        assert (ends(x) and ends(y)) or abs(x - y) > Fraction(1, 10_000) * max(abs(x), abs(y)), (a, b)


@settings(max_examples=120, deadline=None)
@given(numerals, numerals)
def test_any_two_numerals_are_decided_as_math_verify_does_or_more_strictly(a, b):
    agree_with_math_verify(a, b)


@settings(max_examples=300, deadline=None)
@given(small, small)
def test_numerals_that_nearly_agree_are_decided_as_math_verify_does_or_more_strictly(a, b):
    agree_with_math_verify(a, b)


@settings(max_examples=300, deadline=None)
@given(numerals, numerals)
def test_sameness_is_symmetric_and_reflexive(a, b):
    assert same(numeral(a), numeral(a))
    assert same(numeral(a), numeral(b)) == same(numeral(b), numeral(a))


@settings(max_examples=300, deadline=None)
@given(integers, st.integers(1, 10**6))
def test_every_spelling_of_a_fraction_is_read_exactly(p, q):
    value = Fraction(p, q)
    sign, p = ("-" if p < 0 else ""), abs(p)
    spellings = [rf"{sign}\frac{{{p}}}{{{q}}}", rf"{sign}\dfrac {{{p}}} {{{q}}}", f"{sign}{p}/{q}", f"{sign} {p} / {q}"]
    whole, rest = divmod(p, q)
    if whole and rest:
        spellings += [rf"{sign}{whole}\tfrac{{{rest}}}{{{q}}}", f"{sign}{whole} {rest}/{q}"]
    assert {numeral(text).value for text in spellings} == {value}


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20))
def test_no_text_makes_reading_fail_and_what_is_read_is_ascii_digits(text):
    if numeral(text) is not None:
        assert any(character in "0123456789" for character in text)
        assert not any(character.isdecimal() and not character.isascii() for character in text)


def test_numbers_too_large_to_compute_with_are_left_alone():
    assert numeral("1e999") is None and numeral(r"1 \times 10^{9999}") is None and numeral("1e400") is not None
