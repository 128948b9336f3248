r"""What is too large to be read or computed: decided on the text before a parser sees it, on the tree before sympy does.

None of these limits comes near a label of the public data sets; an answer beyond them can only equal its label letter
by letter.
"""

import math
import re

from sympy import Basic, Float, Integer, Pow, Product, Rational, Sum, binomial, exp, factorial

MAX_CHARACTERS = 1000
MAX_NESTING = 20
MAX_DIGITS = 300  # of one numeral
MAX_EXPONENT_DIGITS = 5
MAX_NODES = 2000
MAX_TERMS = 10_000  # of a sum or product
LOG10_MAX = 20_000.0  # of any number on the way to the value

_DEEPER, _SHALLOWER = "{[(", "}])"
_LONG_NUMERAL = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_LONG_EXPONENT = re.compile(rf"\^\s*[{{(]*\s*[-+]?[0-9,]{{{MAX_EXPONENT_DIGITS + 1}}}")
_NUMERIC_TOWER = re.compile(r"\^\s*[{(][-+0-9\s(){]*[0-9)}]\s*(?:\^\s*[{(]*\s*[0-9]|!)")
_FACTORIALS = re.compile(r"!\s*!|[0-9]{6}\s*!|!\s*[)}\]]+\s*!")
_EVALUATED = re.compile(r"(?:binom\s*|Gamma\s*)[({]*\s*[0-9]{5}|(?:eye|zeros|ones|diag)[^0-9]*[0-9]{3}")
_BARS = re.compile(r"(?:[|‖][^|‖]*){13}")
_SILENT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def readable(text: str) -> bool:
    r"""Whether a parser may see the text.

    >>> [readable(t) for t in (r"2^{2019}", "9^{9^{9}}", "1" * 301, "{" * 21, "5!!!", "(3!)!", "9^{999999}", "1\x00")]
    [True, False, False, False, False, False, False, False]
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
    patterns = (_LONG_NUMERAL, _LONG_EXPONENT, _NUMERIC_TOWER, _FACTORIALS, _EVALUATED, _BARS)
    return not any(pattern.search(text) for pattern in patterns)


def computable(tree: Basic) -> bool:
    """Whether sympy can evaluate the tree without making a number of more than 20,000 digits."""
    try:
        nodes = _size(tree)
    except OverflowError:
        return False
    return nodes is not None


def _size(tree: Basic) -> float | None:
    """An upper bound of log10 of the value's size as far as it is a number (0 for symbols); None when too large."""
    stack: list[tuple[Basic, bool]] = [(tree, False)]
    sizes: list[float] = []
    count = 0
    while stack:
        node, visited = stack.pop()
        if not visited:
            count += 1
            if count > MAX_NODES:
                return None
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(_children(node)))
            continue
        children = [sizes.pop() for _ in _children(node)][::-1]
        size = _own_size(node, children)
        if not size <= LOG10_MAX:
            return None
        sizes.append(size)
    return sizes[0]


def _children(node: Basic) -> list[Basic]:
    children = node.args if isinstance(node, Basic) else node.flat()
    return [child for child in children if isinstance(child, Basic)]


def _own_size(node: Basic, children: list[float]) -> float:
    if isinstance(node, Integer | Rational):
        return max(_log10(abs(node.p)), _log10(node.q))
    if isinstance(node, Float):
        return abs(math.log10(abs(float(node)))) if float(node) else 0.0
    largest = max(children, default=0.0)
    if isinstance(node, Pow):
        return children[0] * 10.0 ** children[1] if _is_number(node.exp) else largest
    if isinstance(node, exp):
        return 0.44 * 10.0 ** children[0] if _is_number(node) else largest
    if isinstance(node, factorial | binomial):
        n = 10.0 ** children[0]
        return n * max(math.log10(n), 1.0)
    if isinstance(node, Sum | Product):
        return largest + (math.inf if any(_terms(limit) > MAX_TERMS for limit in node.limits) else 4.0)
    return largest + math.log10(len(children) + 1)


def _terms(limit: Basic) -> float:
    low, high = limit[1:] if len(limit) == 3 else (0, 0)
    return float(high - low) if low.is_number and high.is_number and (high - low).is_finite else 0.0


def _is_number(node: Basic) -> bool:
    return not node.free_symbols


def _log10(n: int) -> float:
    return math.log10(n) if n else 0.0
