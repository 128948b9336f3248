r"""Decides whether two expressions are the same number, or the same function of their letters.

Rational numbers are compared exactly, and others by their relative distance, with as many digits as the numbers may
need. Functions are compared at points. sympy could prove the same by simplification, but 10 to 100 times more slowly
and not always. math-verify ignores differences below an absolute 1e-15, so that 2^{-60} equals 2^{-61}.
"""

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import sympy
from sympy.core.function import AppliedUndef

from r1zero.reward.equality import size_limits
from r1zero.reward.equality.exact import exact
from r1zero.reward.equality.numerals import close, ends
from r1zero.reward.equality.solver import UNDECIDED, rebuilt

_DIGITS = 60  # number of digits to compare, in addition to those for the size of the numbers
_LOST = 10  # number of these that rounding may affect
_MAX_DIGITS = 6000
_ROUNDED_DIGITS = 30
_MIN_POINTS = 2
_OPERATIONS = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)
_UNKNOWN = (AppliedUndef, sympy.Derivative)
# Being equal at some points does not imply being equal everywhere, as |x - 100| and 100 - x show.
_PIECEWISE = (sympy.Abs, sympy.floor, sympy.ceiling, sympy.Mod, sympy.Max, sympy.Min, sympy.sign, sympy.Piecewise)
# Values without special properties. Letters in alphabetical order take one each, with the signs of a row of _SIGNS.
_POINTS = tuple(Fraction(37 + 6 * k, 29 + 4 * k) for k in range(20))
_SIGNS = ((1, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))


class Number(NamedTuple):
    """A complex number. A part that cannot be distinguished from 0 is 0."""

    real: sympy.Expr
    imaginary: sympy.Expr


def same_value(gold: sympy.Basic, pred: sympy.Basic) -> bool:
    """Whether the two are equal. False if that cannot be decided."""
    try:
        return _same(gold, pred)
    except UNDECIDED:
        return False


def _same(gold: sympy.Basic, pred: sympy.Basic) -> bool:
    if not (isinstance(gold, sympy.Expr) and isinstance(pred, sympy.Expr)):
        return False
    rounded = [tree.has(sympy.Float) for tree in (gold, pred)]
    gold, pred = (_prepared(tree) for tree in _without_functions(gold, pred))
    if gold == pred:
        return True
    if gold.has(sympy.oo, sympy.zoo, sympy.nan) or pred.has(sympy.oo, sympy.zoo, sympy.nan):
        return gold in (sympy.oo, -sympy.oo) and gold.doit() == pred.doit()
    letters = sorted(gold.free_symbols | pred.free_symbols, key=lambda symbol: symbol.name)
    if letters:
        return _same_function(gold, pred, letters)
    return _same_number(gold, pred) or (rounded[0] != rounded[1] and _same_rounded(gold, pred))


def _prepared(tree: sympy.Expr) -> sympy.Expr:
    """Returns the tree with decimals as fractions, and with sums, products, limits and integrals evaluated."""
    if tree.has(sympy.Float):
        tree = rebuilt(tree, lambda node: sympy.Rational(str(node)) if isinstance(node, sympy.Float) else None)
    return tree.doit() if tree.has(*_OPERATIONS) else tree


def _without_functions(*trees: sympy.Expr) -> Iterable[sympy.Expr]:
    """Returns the trees with f(x), f(y) and derivatives replaced by letters."""

    def letter(node: sympy.Basic) -> sympy.Symbol | None:
        return sympy.Symbol(str(node)) if isinstance(node, _UNKNOWN) else None

    return [rebuilt(tree, letter) if tree.has(*_UNKNOWN) else tree for tree in trees]


def _same_number(gold: sympy.Expr, pred: sympy.Expr) -> bool:
    a, b = exact(gold, {}), exact(pred, {})
    if a is not None and b is not None:
        return a == b
    digits = _digits_for(gold, pred)
    return digits is not None and _close_by(_number(gold, {}, digits), _number(pred, {}, digits), digits) is True


def _same_rounded(gold: sympy.Expr, pred: sympy.Expr) -> bool:
    """Compare decimals with a number whose decimals never end, which they may round; see numerals.same."""
    a, b = (_real(tree) for tree in (gold, pred))
    if a is None or b is None or all(exact(tree, {}) is not None and ends(v) for tree, v in ((gold, a), (pred, b))):
        return False
    return close(a, b)


def _real(tree: sympy.Expr) -> Fraction | None:
    if (value := exact(tree, {})) is not None:
        return value
    number = _number(tree, {}, _ROUNDED_DIGITS)
    return Fraction(str(number.real)) if number is not None and number.imaginary == 0 else None


def _digits_for(*trees: sympy.Expr) -> int | None:
    """Returns enough digits to distinguish sums and functions of numbers of that size; None if there are too many."""
    parts = [part for tree in trees for part in tree.atoms(sympy.Add, sympy.Rational)]
    parts += [part for tree in trees for function in tree.atoms(sympy.Function) for part in function.args]
    digits = _DIGITS + 2 * int(max((size_limits.size(part).digits for part in parts), default=0.0))
    return digits if digits <= _MAX_DIGITS else None


def _number(tree: sympy.Expr, values: dict[sympy.Basic, sympy.Rational], digits: int) -> Number | None:
    """Returns the value to this many digits, or None if it has none or is not finite."""
    value = tree.evalf(digits, subs=values, maxn=3 * digits)
    if not (isinstance(value, sympy.Expr) and value.is_number and value.is_finite):
        return None
    parts = [part if isinstance(part, sympy.Float) else sympy.Float(part, digits) for part in value.as_real_imag()]
    return Number(*(sympy.S.Zero if part.is_zero or part._prec < digits else part for part in parts))


def _close_by(a: Number | None, b: Number | None, digits: int) -> bool | None:
    """Whether the distance is negligible relative to the numbers. None if one is missing."""
    if a is None or b is None:
        return None
    largest = max(abs(part) for part in (*a, *b))
    distance = max(abs(a.real - b.real), abs(a.imaginary - b.imaginary))
    return bool(distance <= largest * sympy.Float(10, digits) ** (_LOST - digits))


def _same_function(gold: sympy.Expr, pred: sympy.Expr, letters: list[sympy.Symbol]) -> bool:
    """Whether two functions are equal wherever both are real, or wherever both are defined if they are never real.

    Analytic functions that agree at a few points without special properties agree everywhere.
    """
    if len(letters) > len(_POINTS):
        return False
    digits = _digits_for(gold, pred) or _MAX_DIGITS
    verdicts: list[tuple[bool, bool]] = []  # (both real, equal)
    for number, signs in enumerate(_SIGNS):
        point = {x: signs[k % 2] * _POINTS[(k + 5 * number) % len(_POINTS)] for k, x in enumerate(letters)}
        verdict = _at_point(gold, pred, point, digits)
        if verdict == (True, False):
            return False
        verdicts += [verdict] if verdict is not None else []
    real = [equal for is_real, equal in verdicts if is_real]
    equal_everywhere = all(real or [equal for _, equal in verdicts])
    if len(verdicts) < _MIN_POINTS or not equal_everywhere:
        return False
    return not (gold.has(*_PIECEWISE) or pred.has(*_PIECEWISE)) or _equal_for_reals(gold, pred)


def _at_point(
    gold: sympy.Expr, pred: sympy.Expr, point: dict[sympy.Symbol, Fraction], digits: int
) -> tuple[bool, bool] | None:
    """Returns (both real, equal), or None if one is not defined."""
    a, b = exact(gold, point), exact(pred, point)
    if a is not None and b is not None:
        return True, a == b
    values = {letter: sympy.Rational(value.numerator, value.denominator) for letter, value in point.items()}
    x, y = _number(gold, values, digits), _number(pred, values, digits)
    equal = _close_by(x, y, digits)
    if equal is None or x is None or y is None:
        return None
    real = x.imaginary == 0 == y.imaginary
    return real and (equal or (_is_real_throughout(gold, values) and _is_real_throughout(pred, values))), equal


def _is_real_throughout(tree: sympy.Expr, values: dict[sympy.Symbol, sympy.Rational]) -> bool:
    """Whether the value is computed without a root or logarithm of a negative number.

    sqrt(a) sqrt(b) is not sqrt(ab) if both are negative, but such values of the letters are not intended.
    """
    arguments = [
        node.args[0]
        for node in sympy.preorder_traversal(tree)
        if isinstance(node, sympy.log) or (isinstance(node, sympy.Pow) and node.exp.is_integer is False)
    ]
    numbers = [_number(argument, values, _ROUNDED_DIGITS) for argument in arguments]
    return tree.has(sympy.I) or all(n is not None and n.imaginary == 0 and n.real >= 0 for n in numbers)


def _equal_for_reals(gold: sympy.Expr, pred: sympy.Expr) -> bool:
    real = {letter: sympy.Symbol(letter.name, real=True) for letter in gold.free_symbols | pred.free_symbols}
    difference = (gold - pred).xreplace(real)
    return sympy.simplify(difference.rewrite(sympy.ceiling, sympy.floor)) == 0
