"""Rational values of trees as fractions of integers, without rounding and within a limit of length."""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction

import sympy

MAX_BITS = 1 << 18  # of a numerator or denominator
_MAX_FALLING = 30  # number of factors of binomial(x, k) for an x that is not an integer

Values = Mapping[sympy.Basic, Fraction]


def exact(tree: sympy.Basic, values: Values) -> Fraction | None:
    """Returns the value for letters with `values`, or None if it is not rational, undefined, unknown or too long.

    >>> x = sympy.Symbol("x")
    >>> trees = [x**2 + 1, sympy.factorial(5) / sympy.Integer(7), sympy.sqrt(2), 1 / (3 * x - 1)]
    >>> [str(exact(tree, {x: Fraction(1, 3)})) for tree in trees]
    ['10/9', '120/7', 'None', 'None']
    """
    if isinstance(tree, sympy.Rational):
        return Fraction(tree.p, tree.q)
    if isinstance(tree, sympy.Float):
        return Fraction(str(tree))
    if isinstance(tree, sympy.Symbol):
        return values.get(tree)
    compute = _COMPUTE.get(tree.func)
    if compute is None:
        return None
    args = [exact(arg, values) for arg in tree.args]
    if None in args:
        return None
    result = compute(*args)
    return result if result is not None and _short(result) else None


def _short(value: Fraction) -> bool:
    return max(value.numerator.bit_length(), value.denominator.bit_length()) <= MAX_BITS


def _sum(*terms: Fraction) -> Fraction | None:
    total = Fraction(0)
    for term in terms:
        total += term
        if not _short(total):
            return None
    return total


def _product(*factors: Fraction) -> Fraction | None:
    total = Fraction(1)
    for factor in factors:
        total *= factor
        if not _short(total):
            return None
    return total


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if base == 0:
        return Fraction(0) if exponent > 0 else Fraction(1) if exponent == 0 else None
    if base in (1, -1) and exponent.denominator == 1:
        return base ** (exponent.numerator % 2)
    if exponent.denominator != 1:
        root = _root(base, exponent.denominator)
        return _power(root, Fraction(exponent.numerator)) if root is not None else None
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    return base**exponent.numerator if bits * abs(exponent.numerator) <= MAX_BITS else None


def _root(base: Fraction, degree: int) -> Fraction | None:
    if base < 0 or degree > 100:
        return None
    above, below = (sympy.integer_nthroot(n, degree) for n in (base.numerator, base.denominator))
    return Fraction(int(above[0]), int(below[0])) if above[1] and below[1] else None


def _factorial(n: Fraction) -> Fraction | None:
    if n.denominator != 1 or n < 0 or (n > 1 and n * math.log2(n) > MAX_BITS):
        return None
    return Fraction(math.factorial(int(n)))


def _binomial(n: Fraction, k: Fraction) -> Fraction | None:
    if k.denominator != 1 or k < 0:
        return None
    if n.denominator == 1 and n >= 0:
        return Fraction(math.comb(int(n), int(k))) if min(n, k * n.numerator.bit_length()) <= MAX_BITS else None
    if k > _MAX_FALLING:
        return None
    return math.prod((n - i for i in range(int(k))), start=Fraction(1)) / math.factorial(int(k))


def _mod(a: Fraction, b: Fraction) -> Fraction | None:
    return a % b if b else None


_COMPUTE: dict[type, Callable[..., Fraction | None]] = {
    sympy.Add: _sum, sympy.Mul: _product, sympy.Pow: _power, sympy.factorial: _factorial, sympy.binomial: _binomial,
    sympy.gamma: lambda n: _factorial(n - 1),
    sympy.floor: lambda x: Fraction(math.floor(x)), sympy.ceiling: lambda x: Fraction(math.ceil(x)),
    sympy.Abs: abs, sympy.Max: max, sympy.Min: min, sympy.Mod: _mod, sympy.UnevaluatedExpr: lambda x: x,
}  # fmt: skip
