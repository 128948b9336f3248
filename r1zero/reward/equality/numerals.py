r"""Reads numbers as people write them, exactly. Most answers are a number and need no parser.

Only ASCII digits are digits: as in math-verify, digits of other scripts and similar characters are not.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

DECIMALS = 6  # as math-verify's float_rounding
RELATIVE = Fraction(1, 10_000)
MAX_EXPONENT = 400

_SEPARATOR = r"(?:,\\!|,|\{,\}|\\,|\\;|\\ |~|\ )"
_WHOLE = rf"(?:[1-9][0-9]{{0,2}}(?:{_SEPARATOR}[0-9]{{3}})+|[0-9]+)"
_DECIMAL = rf"(?:{_WHOLE}?\.[0-9]+|{_WHOLE})"
_REPEATING = (
    r"(?:(?P<r0>[0-9]*)\.(?P<r1>[0-9]*)"
    r"(?:\\(?:overline|bar)\s*\{\s*(?P<r2>[0-9]+)\s*\}|(?P<dots>\\dot\s*\{?\s*[0-9]\s*\}?(?:[0-9]*\\dot\s*\{?\s*[0-9]\s*\}?)?)))"
)
_FRACTION = (
    rf"(?:\\[dtc]?frac\s*(?:\{{\s*(?P<p>-?{_WHOLE})\s*\}}\s*\{{\s*(?P<q>-?{_WHOLE})\s*\}}"
    r"|(?P<p1>[0-9])\s*(?P<q1>[0-9])|\{\s*(?P<p2>[0-9]+)\s*\}\s*(?P<q2>[0-9])|\s*(?P<p3>[0-9])\s*\{\s*(?P<q3>[0-9]+)\s*\})"
    rf"|(?P<p4>{_WHOLE})\.?\s*/\s*(?P<q4>{_WHOLE})\.?)"  # 1./3, as in programs
)
_POWER_OF_TEN = r"\s*(?:\\times|\\cdot|×|·|\*)\s*10\s*\^\s*(?:\{\s*(?P<n>-?[0-9]{1,4})\s*\}|(?P<n1>[0-9]))"
_NUMERAL = re.compile(
    rf"(?P<sign>[-+−]?)\s*(?:{_REPEATING}|(?P<decimal>{_DECIMAL})(?:{_POWER_OF_TEN}|[eE](?P<n2>[-+]?[0-9]{{1,4}}))?"
    rf"|(?:(?P<whole>[0-9]+)\s*(?=\\)|(?P<whole1>[0-9]+)\s+)?{_FRACTION})"
)
_NOT_DIGITS = re.compile(r"[^0-9.]")


class Numeral(NamedTuple):
    """A number and whether it may be rounded."""

    value: Fraction
    rounded: bool  # has a decimal point, so it may stand for a number whose decimals never end


@lru_cache(maxsize=4096)
def numeral(text: str) -> Numeral | None:
    r"""Returns the number that the text writes, or None if it is not exactly one number.

    >>> [str(numeral(t).value) for t in ("-1,234.50", r"\frac{6}{4}", r"2\frac12", "2 1/2", r"1.5 \times 10^3", "2e-1")]
    ['-2469/2', '3/2', '5/2', '5/2', '1500', '1/5']
    >>> [numeral(t) for t in ("1,23", "3 4", "1/0", "x", "٣")]
    [None, None, None, None, None]
    >>> [str(numeral(t).value) for t in (r"0.1\overline{6}", r"0.1\dot6", r"0.\dot{1}4285\dot{7}")]
    ['1/6', '1/6', '1/7']
    """
    match = _NUMERAL.fullmatch(text)
    if match is None:
        return None
    group = match.groupdict()
    if cycle := group["r2"] or _NOT_DIGITS.sub("", group["dots"] or ""):
        lead = group["r1"]
        value = Fraction(f"{group['r0'] or 0}.{lead or 0}")
        value += Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(lead))
    elif group["decimal"] is not None:
        value = Fraction(_NOT_DIGITS.sub("", group["decimal"]))
        exponent = int(group["n"] or group["n1"] or group["n2"] or 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        value *= Fraction(10) ** exponent
    else:
        top, bottom = (_first(group, name) for name in "pq")
        if bottom == 0:
            return None
        value = Fraction(top, bottom)
        whole = group["whole"] or group["whole1"]
        if whole is not None:
            if value < 0:
                return None
            value += int(whole)
    if group["sign"] in ("-", "−"):
        value = -value
    return Numeral(value, "." in (group["decimal"] or ""))


def _first(group: dict[str, str | None], name: str) -> int:
    text = next(text for key, text in group.items() if key[0] == name and text is not None)
    return int(("-" if text.startswith("-") else "") + _NOT_DIGITS.sub("", text))


def same(a: Numeral, b: Numeral) -> bool:
    """Whether two numerals are the same number.

    Numbers whose decimals end are compared exactly. Only in comparison with a number whose decimals never end may the
    other be rounded: to six decimals, as in math-verify, and at least to one part in 10,000.

    >>> third = numeral("1/3")
    >>> [same(third, numeral(t)) for t in ("0.333333", "0.3333", "0.3", "2/6")]
    [True, False, False, True]
    >>> same(numeral("0.0000001"), numeral("0.0000002")), same(numeral("0.50"), numeral("1/2"))
    (False, True)
    """
    if a.value == b.value:
        return True
    if a.rounded == b.rounded or (ends(a.value) and ends(b.value)):
        return False
    return close(a.value, b.value)


def close(a: Fraction, b: Fraction) -> bool:
    """Whether two numbers are equal to six decimals and to one part in 10,000."""
    return round(a, DECIMALS) == round(b, DECIMALS) and abs(a - b) <= RELATIVE * max(abs(a), abs(b))


def ends(value: Fraction) -> bool:
    """Whether the decimal expansion ends, that is, the denominator has no prime factors but 2 and 5."""
    rest = value.denominator
    rest >>= (rest & -rest).bit_length() - 1
    while rest % 5 == 0:
        rest //= 5
    return rest == 1
