"""Equations and inequalities: what one states about a letter, and whether two state the same."""

import re

import sympy

from r1zero.reward.equality import unevaluated
from r1zero.reward.equality.meaning import LETTER, Equation, Inequality, is_name
from r1zero.reward.equality.scalars import same_value
from r1zero.reward.equality.solver import UNDECIDED, parse
from r1zero.reward.equality.splitting import enclosed

_POINTS = tuple(sympy.Rational(41 + 7 * k, 31 + 5 * k) for k in range(20))  # of the same kind as in scalars
_SET_OPERATION = re.compile(r"[A-Za-z'() ]+(?:\\(?:cup|cap|setminus)(?![A-Za-z])[A-Za-z'() ]+)+")
_INDEX = re.compile(r"_\{?([A-Za-z0-9]+)\}?")


def name_of(equation: Equation) -> str | None:
    """Returns the letter or function on one side of an assignment, or None if there is none."""
    first, last = (_spaceless(side) for side in (equation.sides[0], equation.sides[-1]))
    return first if is_name(first) else last if is_name(last) else None


def value_of(equation: Equation) -> str | None:
    """Returns the last side if all others are names for it, or None if the equation still has to be solved."""
    *names, value = equation.sides
    if len(names) == 1 and LETTER.fullmatch(value) and not LETTER.fullmatch(names[0]):
        return names[0]  # 5 = x
    return value if all(map(_names, names)) else None


def _names(side: str) -> bool:
    """Whether a side is a letter, a function, a tuple of letters, or another name for a value (unevaluated.is_name)."""
    brackets = enclosed(side)
    if (
        is_name(side)
        or _SET_OPERATION.fullmatch(side)
        or (brackets and all(is_name(part.strip()) for part in brackets[1].split(",")))
    ):
        return True
    tree = parse(side)
    return isinstance(tree, sympy.Expr) and unevaluated.is_name(tree)


def base_names(names: list[str]) -> set[str]:
    """Returns the letters without their index if it is only an index: x_1 and x_2 are two values of x."""
    bases = [_INDEX.sub("", name) for name in names]
    return set(bases) if len(set(names)) == len(names) or len(set(bases)) == len(set(names)) == 1 else set(names)


def _spaceless(text: str) -> str:
    return text.replace(" ", "")


def same_equation(label: Equation, answer: Equation) -> bool:
    """Whether the two have the same solutions, because one is a multiple of the other."""
    theirs, ours = (_difference(equation.sides[0], equation.sides[-1]) for equation in (label, answer))
    if theirs is None or ours is None:
        return False
    return _proportional(theirs, ours, positive=False) or _proportional(
        _numerator(theirs), _numerator(ours), positive=False
    )


def same_inequality(label: Inequality, answer: Inequality) -> bool:
    """Whether two inequalities of two sides have the same sign, and one is a positive multiple of the other."""
    if label.signs != answer.signs or len(label.sides) != 2:
        return False
    theirs, ours = (_difference(*inequality.sides) for inequality in (label, answer))
    positive = label.signs[0] in ("<", r"\le")
    return theirs is not None and ours is not None and _proportional(theirs, ours, positive=positive)


def _difference(left: str, right: str) -> sympy.Expr | None:
    trees = [parse(side) for side in (left, right)]
    if not all(isinstance(tree, sympy.Expr) and not tree.has(sympy.oo, sympy.zoo, sympy.nan) for tree in trees):
        return None
    return sympy.Add(trees[0], sympy.Mul(-1, trees[1], evaluate=False), evaluate=False)


def _numerator(tree: sympy.Expr) -> sympy.Expr:
    try:
        return sympy.fraction(sympy.together(tree))[0]
    except UNDECIDED:
        return tree


def _proportional(f: sympy.Expr, g: sympy.Expr, positive: bool) -> bool:
    """Whether f is a constant multiple of g and neither is 0, by f(p) g(x) = g(p) f(x) for a point p."""
    letters = sorted(f.free_symbols | g.free_symbols, key=lambda letter: letter.name)
    if not letters or len(letters) > len(_POINTS) or f.free_symbols != g.free_symbols:
        return False
    point = dict(zip(letters, _POINTS, strict=False))
    try:
        a, b = f.xreplace(point), g.xreplace(point)
        if same_value(a, sympy.S.Zero) or same_value(b, sympy.S.Zero) or (positive and not (a / b).evalf() > 0):
            return False
    except UNDECIDED:
        return False
    return same_value(sympy.Mul(a, g, evaluate=False), sympy.Mul(b, f, evaluate=False))
