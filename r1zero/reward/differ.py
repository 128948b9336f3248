"""Certain inequality by numbers, for most wrong answers the end of the matter.

Two expressions with different values at one point are different, two equations with a solution that only one of them
has are too. sympy would find the same by simplifying and solving, 10 to 100 times slower, and math-verify, which
compares lists of real solutions, calls any two equations equal that have none.
"""

from collections.abc import Sequence

from mpmath.libmp import NoConvergence
from sympy import Basic, Eq, Expr, FiniteSet, Float, Interval, Poly, Rational, Symbol, Tuple
from sympy.core.function import AppliedUndef
from sympy.matrices import MatrixBase
from sympy.polys.polyerrors import BasePolynomialError

Tree = Basic | MatrixBase

_PRECISION = 30  # digits
_EXACT = Float("1e-15")  # relative
_ROUNDED = Float("2e-6")  # absolute: beyond this no two numbers are equal at six decimals
_MAX_DEGREE = 8
_POINTS = tuple(Rational((-1) ** k * (37 + 6 * k), 29 + 4 * k) for k in range(20))  # no value that a formula likes


def surely_differ(gold: Tree, pred: Tree) -> bool:
    """Whether the two are certainly not equal; False says nothing."""
    if isinstance(gold, Eq) and isinstance(pred, Eq):
        return _equations_differ(gold, pred)
    pairs = _pairs(gold, pred)
    return any(_expressions_differ(a, b) for a, b in pairs)


def _pairs(gold: Tree, pred: Tree) -> Sequence[tuple[Tree, Tree]]:
    """What must be equal one by one: the expressions themselves, elements in order, or elements by size."""
    if isinstance(gold, FiniteSet) and isinstance(pred, FiniteSet):
        ours, theirs = _by_size(pred), _by_size(gold)
        return list(zip(theirs, ours, strict=True)) if len(ours) == len(theirs) else []
    ours, theirs = _in_order(pred), _in_order(gold)
    return list(zip(theirs, ours, strict=True)) if len(ours) == len(theirs) else []


def _in_order(tree: Tree) -> list[Tree]:
    if isinstance(tree, Interval):
        return [tree.start, tree.end]
    if isinstance(tree, Tuple):
        return list(tree.args)
    return [tree] if isinstance(tree, Expr) else []


def _by_size(tree: FiniteSet) -> list[Tree]:
    values = [_value(element, {}) for element in tree.args]
    if any(value is None or not value.is_real for value in values):
        return []
    return sorted(values)


def _expressions_differ(gold: Tree, pred: Tree) -> bool:
    if not (isinstance(gold, Expr) and isinstance(pred, Expr)):
        return False
    if gold.is_Symbol or pred.is_Symbol:
        return False  # a symbol may be a word, and its letters a product
    symbols = sorted(gold.free_symbols | pred.free_symbols, key=lambda symbol: symbol.name)
    rounded = gold.has(Float) or pred.has(Float)
    if len(symbols) > len(_POINTS) or rounded and symbols:
        return False
    point = dict(zip(symbols, _POINTS, strict=False))
    a, b = _value(gold, point), _value(pred, point)
    if a is None or b is None:
        return False
    return bool(abs(a - b) > (_ROUNDED if rounded else _EXACT * (1 + abs(a) + abs(b))))


def _value(tree: Tree, point: dict[Basic, Rational]) -> Expr | None:
    """The number at the point, or None where there is none, or not certainly."""
    if (
        not isinstance(tree, Expr)
        or tree.has(AppliedUndef)
        or not all(isinstance(s, Symbol) for s in tree.free_symbols)
    ):
        return None
    value = tree.doit().evalf(_PRECISION, subs=point)  # evalf alone would drop the base of a logarithm not yet done
    return value if isinstance(value, Expr) and value.is_number and value.is_finite else None


def _equations_differ(gold: Eq, pred: Eq) -> bool:
    """Whether a solution of one, found with numbers for all letters but one, is certainly none of the other."""
    f, g = (
        tree.lhs - tree.rhs if isinstance(tree.lhs, Expr) and isinstance(tree.rhs, Expr) else None
        for tree in (gold, pred)
    )
    if f is None or g is None or f.has(AppliedUndef, Float) or g.has(AppliedUndef, Float):
        return False
    symbols = sorted(f.free_symbols | g.free_symbols, key=lambda symbol: symbol.name)
    if not all(isinstance(symbol, Symbol) for symbol in symbols) or len(symbols) > len(_POINTS):
        return False
    return any(_has_own_solution(a, b, symbols) for a, b in ((f, g), (g, f)))


def _has_own_solution(f: Expr, g: Expr, symbols: list[Symbol]) -> bool:
    unknown = next((symbol for symbol in reversed(symbols) if symbol in f.free_symbols), None)
    if unknown is None:
        return False
    point = {symbol: value for symbol, value in zip(symbols, _POINTS, strict=False) if symbol != unknown}
    try:
        polynomial = Poly(f.subs(point), unknown)
        roots = polynomial.nroots(n=_PRECISION) if 0 < polynomial.degree() <= _MAX_DEGREE else []
    except (BasePolynomialError, NoConvergence):
        return False
    if not roots:
        return False
    other = _value(g.subs(point).subs(unknown, roots[0]), {})
    return other is not None and bool(abs(other) > Float("1e-9"))
