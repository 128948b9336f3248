"""Sets of real numbers: intervals and their unions, the solutions of chains of inequalities, and their comparison."""

import re
from typing import NamedTuple

import sympy

from r1zero.reward.equality.leaves import tree_of
from r1zero.reward.equality.numerals import numeral
from r1zero.reward.equality.quantities import quantity
from r1zero.reward.equality.scalars import same_value
from r1zero.reward.equality.solver import UNDECIDED
from r1zero.reward.equality.splitting import enclosed, split

LINE = sympy.Interval(-sympy.oo, sympy.oo)
_NAMED = {
    r"\emptyset": sympy.S.EmptySet, r"\mathbb{R}": LINE,
    r"\mathbb{Z}": sympy.S.Integers, r"\mathbb{N}": sympy.S.Naturals,
    r"\mathbb{Q}": sympy.S.Rationals, r"\mathbb{C}": sympy.S.Complexes,
}  # fmt: skip
_OPERATIONS = (
    (re.compile(r"\\cup(?![A-Za-z])"), sympy.Union),
    (re.compile(r"\\cap(?![A-Za-z])"), sympy.Intersection),
    (re.compile(r"\\setminus(?![A-Za-z])"), sympy.Complement),
)
_COMMA = re.compile("[,;]")


class Interval(NamedTuple):
    """An interval. A point is a closed interval of length 0."""

    start: sympy.Expr
    end: sympy.Expr
    left_open: bool
    right_open: bool


def from_operations(text: str) -> sympy.Set | None:
    r"""Returns a named set, or one written with \cup, \cap and \setminus; None for anything else, also an interval.

    >>> from_operations(r"[0, 1) \cup (1, 3]"), from_operations("[0, 1)")
    (Union(Interval.Ropen(0, 1), Interval.Lopen(1, 3)), None)
    >>> from_operations(r"\mathbb{R} \setminus \{2\}")
    Union(Interval.open(-oo, 2), Interval.open(2, oo))
    """
    if text in _NAMED:
        return _NAMED[text]
    for separator, operation in _OPERATIONS:
        parts = split(text, separator)
        if len(parts) > 1:
            sets = [_operand(part) for part in parts]
            return (
                operation(*sets) if None not in sets and (operation is not sympy.Complement or len(sets) == 2) else None
            )
    return None


def _operand(text: str) -> sympy.Set | None:
    brackets = enclosed(text)
    if brackets is not None and brackets[0] == "(" and brackets[2] == ")" and len(split(brackets[1], _COMMA)) == 1:
        return from_operations(brackets[1])
    if brackets is not None:
        return from_parts(brackets[0], split(brackets[1], _COMMA), brackets[2])
    return from_operations(text)


def from_parts(opening: str, parts: list[str] | tuple[str, ...], closing: str) -> sympy.Set | None:
    """Returns an interval with two ends in brackets, or the numbers in braces."""
    numbers = [value for part in parts if (value := number(part)) is not None]
    if len(numbers) < len(parts):
        return None
    if opening == r"\{":
        return sympy.FiniteSet(*numbers)
    if len(numbers) != 2:
        return None
    start, end = numbers
    if (opening == "[" and start.is_infinite) or (closing == "]" and end.is_infinite):
        return None
    return interval(start, end, opening == "(", closing == ")")


def interval(start: sympy.Expr, end: sympy.Expr, left_open: bool, right_open: bool) -> sympy.Interval | None:
    """Returns the interval, or None if it is empty or its ends cannot be compared."""
    try:
        return sympy.Interval(start, end, left_open, right_open) if bool(start < end) else None
    except UNDECIDED:
        return None


def from_chain(signs: tuple[str, ...], sides: list[str], name: str) -> sympy.Set | None:
    r"""Returns what a < x \le b states about x, with sides in ascending order; None if another side is not a number."""
    place = sides.index(name)
    if len(sides) > 3 or (len(sides) == 3 and place != 1):
        return None
    low = number(sides[place - 1]) if place > 0 else -sympy.oo
    high = number(sides[place + 1]) if place + 1 < len(sides) else sympy.oo
    if low is None or high is None:
        return None
    return interval(low, high, place == 0 or signs[0] == "<", place + 1 == len(sides) or signs[-1] == "<")


def without(side: str, is_set: bool) -> sympy.Set | None:
    """Returns all real numbers except one number, or except those of a set."""
    points = _operand(side) if is_set else number(side)
    if points is None:
        return None
    return sympy.Complement(LINE, points if is_set else sympy.FiniteSet(points))


def number(text: str) -> sympy.Expr | None:
    """Returns the real number, or infinity, that the text writes, without its unit; None if it writes none."""
    text = quantity(text).body
    if (value := numeral(text)) is not None:
        return sympy.Rational(value.value.numerator, value.value.denominator)
    tree = tree_of(text)
    if not isinstance(tree, sympy.Expr) or tree.free_symbols or tree.has(sympy.Float):
        return None
    try:
        tree = tree.doit()
        return tree if tree.is_extended_real else None
    except UNDECIDED:
        return None


def same_set(a: sympy.Set, b: sympy.Set) -> bool:
    """Whether the two sets have the same points. False if that cannot be decided."""
    if a == b:
        return True
    ours, theirs = _pieces(a), _pieces(b)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return False
    return all(map(_same_piece, ours, theirs))


def _pieces(points: sympy.Set) -> list[Interval] | None:
    """Returns the intervals and points of a set in ascending order, or None."""
    pieces: list[Interval] = []
    for part in points.args if isinstance(points, sympy.Union) else (points,):
        if isinstance(part, sympy.Interval):
            pieces.append(Interval(part.start, part.end, bool(part.left_open), bool(part.right_open)))
        elif isinstance(part, sympy.FiniteSet):
            pieces += [Interval(point, point, False, False) for point in part.args]
        else:
            return None
    try:
        return sorted(pieces, key=lambda piece: float(piece.start))
    except UNDECIDED:
        return None


def _same_piece(a: Interval, b: Interval) -> bool:
    return a[2:] == b[2:] and same_value(a.start, b.start) and same_value(a.end, b.end)
