r"""Compares two texts that cannot be divided: times, ratios, numbers in a base, and expressions."""

import re
from functools import lru_cache

import sympy
from sympy.matrices import MatrixBase
from sympy.matrices.expressions import MatrixExpr

from r1zero.reward.equality import notation, scalars, solver, unevaluated
from r1zero.reward.equality.numerals import numeral
from r1zero.reward.equality.numerals import same as same_numeral
from r1zero.reward.equality.splitting import split

_COLON = re.compile(":")
_JUXTAPOSED = re.compile(
    r"(?<![_^0-9])(?<!frac)(?<!frac )[0-9]+(?:\s+[0-9]|\s*\(\s*[-+]?[0-9.]+\s*\)(?!\s*\^))"
    r"|\(\s*[-+]?[0-9.]+\s*\)\s*[0-9]"
    r"|\\frac\{[^{}]*\}\{[^{}]*\}\s*[0-9]"
)
_QUOTES = re.compile(r"\"|[0-9]\s*'")  # feet and inches, whose marks math-verify drops
_BASE_INSIDE = re.compile(r"[0-9]\s*_")  # a number in a base beside other parts, whose base math-verify drops
_COMPUTED_ON_READING = re.compile(r"\\det|vmatrix|operatorname\{(?!gcd|lcm|floor|ceil)")


def same_notation(answer: str, label: str) -> bool | None:
    """Compare times, ratios and numbers in a base. Returns None if the texts are expressions."""
    ours, theirs = notation.clock(answer), notation.clock(label)
    if ours is not None and theirs is not None:
        return notation.same_clock(ours, theirs)
    if (verdict := _same_ratio(answer, label)) is not None:
        return verdict
    based = [notation.based(text) for text in (answer, label)]
    return notation.same_based(based[0] or answer, based[1] or label) if any(based) else None


def _same_ratio(answer: str, label: str) -> bool | None:
    """Compare ratios: 1:2 equals 2:4 and one half. Returns None if neither text is a ratio."""
    ours, theirs = (notation.ratio(split(text, _COLON), text) for text in (answer, label))
    if ours is None and theirs is None:
        return None
    if theirs is not None and not notation.may_be_scaled(theirs, ours):
        return ours is not None and len(ours) == len(theirs) and all(map(same_expression, ours, theirs))
    if ours is None or theirs is None:
        terms, other = (ours, label) if theirs is None else (theirs, answer)
        return terms is not None and len(terms) == 2 and _same_quotient(terms, [other, "1"])
    return len(ours) == len(theirs) and all(
        _same_quotient([ours[k], ours[0]], [theirs[k], theirs[0]]) for k in range(1, len(ours))
    )


def _same_quotient(a: list[str], b: list[str]) -> bool:
    """Whether a[0]/a[1] = b[0]/b[1], where none of the four is 0."""
    trees = [tree_of(text) for text in (*a, *b)]
    if not all(isinstance(tree, sympy.Expr) and tree.is_zero is not True for tree in trees):
        return False
    first, second, third, fourth = trees
    return scalars.same_value(sympy.Mul(first, fourth, evaluate=False), sympy.Mul(second, third, evaluate=False))


def same_expression(answer: str, label: str) -> bool:
    """Compare numbers exactly, and everything else by the values of what the solver reads."""
    if answer == label:
        return True
    ours, theirs = numeral(answer), numeral(label)
    if ours is not None and theirs is not None:
        return same_numeral(ours, theirs)
    gold, pred = tree_of(label), tree_of(answer)
    if gold is None or pred is None or unevaluated.is_unevaluated(pred, gold):
        return False
    if _COMPUTED_ON_READING.search(answer) and not _COMPUTED_ON_READING.search(label):
        return False
    return _same_tree(gold, pred)


def _same_tree(gold: solver.Tree, pred: solver.Tree) -> bool:
    matrices = [_as_matrix(tree) for tree in (gold, pred)]
    if all(isinstance(matrix, MatrixBase) for matrix in matrices):
        a, b = matrices
        return a.shape == b.shape and all(map(scalars.same_value, a.flat(), b.flat()))
    return scalars.same_value(gold, pred)


def _as_matrix(tree: solver.Tree) -> solver.Tree:
    if not isinstance(tree, MatrixExpr):
        return tree
    try:
        return tree.doit()
    except solver.UNDECIDED:
        return tree


@lru_cache(maxsize=4096)
def tree_of(text: str) -> solver.Tree | None:
    """Returns the expression that the text writes, or None if it cannot be read as one."""
    value = numeral(text)
    if value is not None and not value.rounded:
        return sympy.Rational(value.value.numerator, value.value.denominator)
    if not text or any(pattern.search(text) for pattern in (_JUXTAPOSED, _QUOTES, _BASE_INSIDE)):
        return None  # math-verify would add numbers that stand side by side, as in a mixed number
    return solver.parse(text)


def is_read(text: str) -> bool:
    """Whether the text, without its unit, is understood as more than its letters."""
    if notation.clock(text) or notation.based(text) or numeral(text) is not None:
        return True
    terms = notation.ratio(split(text, _COLON), text) or [text]
    return all(isinstance(tree_of(term), sympy.Expr | MatrixBase | MatrixExpr) for term in terms)
