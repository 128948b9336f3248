r"""Whether an answer leaves the work to the grader: an echo of the question has the value of its answer.

math-verify evaluates what it reads, so that `2+2` earns the reward of 4, and takes the right side of any equation, so
that `2x+3=7` earns that of 7. A policy that copies the question would learn just that.
"""

import sympy
from sympy.core.function import AppliedUndef
from sympy.logic.boolalg import And
from sympy.matrices import MatrixBase

Tree = sympy.Basic | MatrixBase

_OPERATIONS = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)
_FUNCTIONS = (
    sympy.factorial, sympy.binomial, sympy.gamma, sympy.floor, sympy.ceiling, sympy.Mod, sympy.Max, sympy.Min,
)  # fmt: skip
_PER_CENT = sympy.UnevaluatedExpr(sympy.Rational(1, 100))


def left_undone(answer: Tree, label: Tree) -> bool:
    """Whether the answer is an equation still to be solved, or holds arithmetic on numbers that the label lacks."""
    if not _has_equation(label) and any(not _is_name(side) for side in _named_sides(answer)):
        return True
    return any(map(_is_computation, _values(answer))) and not any(map(_is_computation, _nodes(label)))


def _has_equation(tree: Tree) -> bool:
    return any(isinstance(node, sympy.Eq) for node in _nodes(tree))


def _named_sides(tree: Tree) -> list[sympy.Basic]:
    """The left sides of the equations that math-verify will drop."""
    if isinstance(tree, sympy.Eq):
        return [tree.lhs]
    if isinstance(tree, And):
        first = getattr(tree, "_unsorted_args", tree.args)[0]  # latex2sympy2_extended keeps a chain's order there
        return _named_sides(first)
    if isinstance(tree, sympy.FiniteSet | sympy.Tuple):
        return [side for element in tree.args for side in _named_sides(element)]
    return []


def _is_name(side: sympy.Basic) -> bool:
    """x, f(3), a + b, x^2 or AB/CD name a value, and 2 + 2 (= 4) is one; 2x + 3 (= 7) is an equation to solve."""
    if not side.free_symbols:
        return True
    if isinstance(side, AppliedUndef):
        return True
    if isinstance(side, sympy.Number):
        return side in (sympy.S.NegativeOne, sympy.S.One)
    parts = side.args[:1] if isinstance(side, sympy.Pow) else side.args
    return all(
        isinstance(part, sympy.Number) and part == -1 or _is_name(part) and bool(part.free_symbols) for part in parts
    )


def _values(tree: Tree) -> list[sympy.Basic]:
    """All nodes, but of an equation only those on its last side."""
    if isinstance(tree, sympy.Eq):
        return _values(tree.rhs)
    if isinstance(tree, And):
        return _values(getattr(tree, "_unsorted_args", tree.args)[-1])
    if isinstance(tree, sympy.FiniteSet | sympy.Tuple):
        return [node for element in tree.args for node in _values(element)]
    return _nodes(tree)


def _nodes(tree: Tree) -> list[sympy.Basic]:
    roots = tree.flat() if isinstance(tree, MatrixBase) else [tree]
    return [node for root in roots for node in sympy.preorder_traversal(root)]


def _is_computation(node: sympy.Basic) -> bool:
    """Two written numbers added or multiplied, a sum or an integral, or a function of numbers that can be computed."""
    if isinstance(node, sympy.Add | sympy.Mul):
        return sum(isinstance(arg, sympy.Number) and arg != -1 for arg in node.args) >= 2
    if isinstance(node, sympy.UnevaluatedExpr):
        return node != _PER_CENT
    return isinstance(node, _OPERATIONS) or isinstance(node, _FUNCTIONS) and not node.free_symbols
