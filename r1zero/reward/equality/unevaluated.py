r"""Whether an answer leaves the work to the grader: an echo of the question has the value of its answer.

A policy that copies the question would learn just that, were `2+2` as good as 4, or `2x+3=7` as 2. One closed form is a
value, however it is computed: 2^{10}, 5!, \binom{5}{2}.
"""

import sympy
from sympy.core.function import AppliedUndef
from sympy.matrices import MatrixBase

Tree = sympy.Basic | MatrixBase

_OPERATIONS = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit, sympy.Derivative)


def left_undone(answer: Tree, label: Tree) -> bool:
    """Whether the answer holds arithmetic on numbers, a sum or an integral, and the label nothing of the kind."""
    return any(map(_is_computation, _nodes(answer))) and not any(map(_is_computation, _nodes(label)))


def is_name(side: sympy.Basic) -> bool:
    """x, f(3), a + b, x^2 or AB/CD name a value, and 2 + 2 (= 4) is one; 2x + 3 (= 7) is an equation to solve."""
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
    """Two written numbers added or multiplied, or a sum, product, integral, limit or derivative."""
    if isinstance(node, sympy.Add | sympy.Mul):
        return sum(isinstance(arg, sympy.Number) and arg != -1 for arg in node.args) >= 2
    return isinstance(node, _OPERATIONS) or (isinstance(node, sympy.Mod) and not node.free_symbols)
