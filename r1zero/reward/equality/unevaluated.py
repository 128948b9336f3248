r"""Detects answers that leave the computation to the grader, such as an echo of the question.

A policy that copies the question must not be rewarded, so `2+2` is not as good as 4, nor `2x+3=7` as 2. A single closed
form is a value, even if it must be computed: 2^{10}, 5!, \binom{5}{2}.
"""

from typing import TypeAlias

import sympy
from sympy.core.function import AppliedUndef
from sympy.matrices import MatrixBase

Tree: TypeAlias = sympy.Basic | MatrixBase

_OPERATIONS = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


def is_unevaluated(answer: Tree, label: Tree) -> bool:
    """Whether the answer contains arithmetic on numbers, a sum or an integral, and the label contains none of these."""
    return any(map(_is_computation, _nodes(answer))) and not any(map(_is_computation, _nodes(label)))


def is_name(side: sympy.Basic) -> bool:
    """Whether a side names a value, as x, f(3), a + b, x^2, AB/CD and 2 + 2 (= 4) do, unlike 2x + 3 (= 7)."""
    if not side.free_symbols:
        return True
    if isinstance(side, AppliedUndef | sympy.Derivative):
        return True
    if isinstance(side, sympy.Number):
        return side in (sympy.S.NegativeOne, sympy.S.One)
    parts = side.args[:1] if isinstance(side, sympy.Pow) else side.args
    return all(
        (isinstance(part, sympy.Number) and part == -1) or (is_name(part) and bool(part.free_symbols)) for part in parts
    )


def _nodes(tree: Tree) -> list[sympy.Basic]:
    roots = tree.flat() if isinstance(tree, MatrixBase) else [tree]
    return [node for root in roots for node in sympy.preorder_traversal(root)]


def _is_computation(node: sympy.Basic) -> bool:
    """Whether a node adds or multiplies two written numbers, or is a sum, product, integral, limit or derivative."""
    if isinstance(node, sympy.Add | sympy.Mul):
        return sum(isinstance(arg, sympy.Number) and arg != -1 for arg in node.args) >= 2
    return isinstance(node, _OPERATIONS) or (isinstance(node, sympy.Mod) and not node.free_symbols)
