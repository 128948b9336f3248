r"""Limits for what is read or computed, checked on the text before parsing and on numbers while they are built.

No label of the public data sets comes near these limits. An answer beyond them can only be equal to its label letter by
letter. Values are limited, not their spelling: 2^{2^{2^{2}}} is 65536, and 9^{9^{9}} is never computed.
"""

import math
import re
from typing import NamedTuple

from sympy import (
    Basic,
    Float,
    Integer,
    Mul,
    Pow,
    Product,
    Rational,
    Sum,
    Symbol,
    binomial,
    cosh,
    exp,
    factorial,
    gamma,
    log,
    sinh,
    tanh,
)
from sympy.core.numbers import NumberSymbol

MAX_CHARACTERS = 1000
MAX_NESTING = 20
MAX_DIGITS = 300  # of a single numeral
MAX_NODES = 2000
MAX_TERMS = 10_000  # of a sum or product
MAX_LOG10 = 20_000.0  # of any intermediate number

_DEEPER, _SHALLOWER = "{[(", "}])"
_LONG_NUMERAL = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_DOUBLE_FACTORIAL = re.compile(r"!\s*!")  # 5!! is 15, but would be read as (5!)!
_TWO_EXPONENTS = re.compile(r"\^\s*(?:[0-9A-Za-z]|\{[^{}]*\})\s*\^")  # x^2^3 is not valid TeX and is ambiguous
_EVALUATED = re.compile(r"(?:eye|zeros|ones|diag)[^0-9]*[0-9]{3}")
_BARS = re.compile(r"(?:[|‖][^|‖]*){13}")
_SILENT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SYMBOL = 0.2  # log10 of the values that `scalars` uses for a letter


class TooLarge(ValueError):
    """A number exceeds MAX_LOG10, or a tree exceeds MAX_NODES."""


class Size(NamedTuple):
    """The size of a value, as far as it is known without computing it. Both fields are upper bounds of log10."""

    value: float  # of the absolute value
    digits: float  # of how far the parts are from 1 in either direction, which bounds the number of digits


def readable(text: str) -> bool:
    r"""Whether a parser may read the text.

    >>> [readable(t) for t in (r"2^{2019}", "9^{9^{9}}", "1" * 301, "{" * 21, "5!!", "x^2^3", "1\x00")]
    [True, True, False, False, False, False, False]
    """
    if len(text) > MAX_CHARACTERS or _SILENT.search(text):
        return False
    depth = 0
    for character in text:
        if character in _DEEPER:
            depth += 1
            if depth > MAX_NESTING:
                return False
        elif character in _SHALLOWER:
            depth -= 1
    patterns = (_LONG_NUMERAL, _DOUBLE_FACTORIAL, _TWO_EXPONENTS, _EVALUATED, _BARS)
    return not any(pattern.search(text) for pattern in patterns)


def size(tree: Basic) -> Size:
    """Returns the size of a tree.

    Raises TooLarge if it has a number of over 20,000 digits or a sum of too many terms.
    """
    stack: list[tuple[Basic, bool]] = [(tree, False)]
    sizes: list[Size] = []
    ranges: dict[Basic, float] = {}
    count = 0
    while stack:
        node, visited = stack.pop()
        if not visited:
            count += 1
            if count > MAX_NODES:
                raise TooLarge(count)
            if isinstance(node, Sum | Product):
                ranges.update((limit[0], math.log10(max(_end(limit), 1.0))) for limit in node.limits)
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(_children(node)))
            continue
        children = [sizes.pop() for _ in _children(node)][::-1]
        try:
            own = _own(node, children, ranges)
        except OverflowError:
            raise TooLarge(node.func) from None
        if not (own.value <= MAX_LOG10 and own.digits <= MAX_LOG10):
            raise TooLarge(node.func)
        sizes.append(own)
    return sizes[0]


def _children(node: Basic) -> list[Basic]:
    children = node.args if isinstance(node, Basic) else node.flat()
    return [child for child in children if isinstance(child, Basic)]


def _own(node: Basic, children: list[Size], ranges: dict[Basic, float]) -> Size:
    if isinstance(node, Integer | Rational):
        above, below = _log10(abs(node.p)), _log10(node.q)
        return Size(above - below, max(above, below))
    if isinstance(node, Float):
        return _both(math.log10(abs(float(node))) if float(node) else 0.0)
    if isinstance(node, Symbol | NumberSymbol):
        return _both(ranges.get(node, _SYMBOL if isinstance(node, Symbol) else 0.5))
    if not children:
        return _both(0.0)
    total = sum(child.digits for child in children)
    first, last = children[0], children[-1]
    if isinstance(node, Pow):
        return _power(first.digits, last, total)
    if isinstance(node, exp | cosh | sinh | tanh):
        return _power(0.4343, first, total)
    if isinstance(node, factorial | gamma):
        return _both(10.0**first.value * max(first.value, 1.0))
    if isinstance(node, binomial):
        return _both(min(0.302 * 10.0**first.value, 10.0**last.value * (max(first.value, 0.0) + 0.5)))
    if isinstance(node, Sum | Product):
        return _both(_repeated(node, first))
    if isinstance(node, log):
        return Size(math.log10(2.31 * max(first.digits, 1.0)), total)
    if isinstance(node, Mul):
        return Size(sum(child.value for child in children), total)
    largest = max(child.value for child in children) + math.log10(len(children) + 1)
    return Size(largest, max(child.digits for child in children))


def _repeated(node: Sum | Product, term: Size) -> float:
    terms = max(_end(limit) - _start(limit) for limit in node.limits)
    if terms > MAX_TERMS:
        return math.inf
    return term.digits + 4.0 if isinstance(node, Sum) else term.digits * max(terms, 1.0)


def _power(base: float, exponent: Size, total: float) -> Size:
    times = 10.0**exponent.value
    return Size(base * times, max(base * times, total))


def _both(log10: float) -> Size:
    return Size(log10, abs(log10))


def _start(limit: Basic) -> float:
    return _finite(limit[1]) if len(limit) == 3 else 0.0


def _end(limit: Basic) -> float:
    return _finite(limit[2]) if len(limit) == 3 else 0.0


def _finite(bound: Basic) -> float:
    """Returns the limit of a sum as a number, or 0 if it is not a number or not finite."""
    try:
        return float(bound) if bound.is_number and bound.is_finite else 0.0
    except OverflowError:
        return math.inf


def _log10(n: int) -> float:
    return math.log10(n) if n else 0.0
