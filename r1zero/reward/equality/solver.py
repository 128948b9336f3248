r"""Converts the text of one expression to a sympy tree, with math-verify and latex2sympy2_extended.

Only math-verify's LaTeX parser is used. Its expression extractor, which evaluates text as Python through sympy's
`parse_expr`, never receives any text. Neither do its searches through a response, because the text to read is selected
before.
"""

import logging
import re
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

import sympy
from antlr4.atn.PredictionMode import PredictionMode
from antlr4.error.Errors import ParseCancellationException
from antlr4.error.ErrorStrategy import BailErrorStrategy
from latex2sympy2_extended import latex2sympy2
from math_verify.parser import LatexExtractionConfig, extract_latex
from mpmath.libmp import NoConvergence
from sympy.matrices import MatrixBase
from sympy.polys.polyerrors import BasePolynomialError

from r1zero.reward.equality import size_limits
from r1zero.reward.equality.arguments import applied

Tree: TypeAlias = sympy.Basic | MatrixBase

# Exceptions of sympy for trees that it cannot handle.
UNDECIDED = (
    ArithmeticError, AttributeError, LookupError, NotImplementedError, RecursionError, TypeError, ValueError,
    BasePolynomialError, NoConvergence,
)  # fmt: skip

_CONFIG = LatexExtractionConfig()
# Units and the arguments of commands are handled before; math-verify's patterns for both match too much.
_AS_WRITTEN = replace(
    _CONFIG, normalization_config=replace(_CONFIG.normalization_config, units=False, malformed_operators=False)
)
_WHOLE = re.compile(r"(?P<first_latexBoxed>.+)", re.DOTALL)
# The power of a letter needs the parser's slow second stage, unless braces separate it from what precedes it.
_POWER_OF_LETTER = re.compile(
    r"(?:(?<![A-Za-z\\_])(?P<letter>[a-df-zA-DF-Z])|(?P<greek>\\(?:pi|theta|alpha|beta|lambda|mu|omega)))"
    r"(?=\s*\^\s*(?:\{[^{}\\]*\}|[0-9A-SU-Za-z])(?!\s*\())"
)
# The parser reads E and e as Euler's number, which has no subscript.
_SUBSCRIPT_OF_E = re.compile(r"(?<![A-Za-z\\])([Ee])\s*_\s*(?:([0-9A-Za-z])|\{([0-9A-Za-z]+)\})")
_LONG_EXPONENT = re.compile("[eE][-+]?[0-9]{5}")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)$")
# Nodes that may remain unevaluated in a tree.
_WRITTEN = (sympy.Add, sympy.Mul, sympy.Pow)


class TwoStageParser(latex2sympy2.PSParser):
    """Parses in two stages, as ANTLR recommends: first without context, and with full context only if that fails.

    The grammar needs full context for few texts, but spends 40 to 170 ms on it for every tuple. If the first stage
    succeeds, its tree is that of the second stage.
    """

    def math(self):
        strategy = self._errHandler
        self._errHandler, self._interp.predictionMode = BailErrorStrategy(), PredictionMode.SLL
        try:
            return super().math()
        except ParseCancellationException:
            self._errHandler, self._interp.predictionMode = strategy, PredictionMode.LL
            self.reset()
            return super().math()


class Reader(latex2sympy2._Latex2Sympy):
    """latex2sympy2_extended's converter, with corrections for what it computes, loses or confuses while reading.

    R and r are different letters. A number that is too large is refused before anything evaluates it. Degrees inside
    sin, cos .. are pi/180. An odd root of a negative number is real.
    """

    def __init__(self, variable_values=None, is_real=None, convert_degrees=False, config=None):
        config = replace(config or latex2sympy2.ConversionConfig(), lowercase_symbols=False)
        super().__init__(variable_values, None, convert_degrees, config)

    def create_parser(self, latex_str):
        parser = super().create_parser(latex_str)
        parser.__class__ = TwoStageParser
        return parser

    def parse_number(self, text):
        return read_number(text)

    def convert_exp(self, exp):
        return _bounded(super().convert_exp(exp))

    def convert_postfix(self, postfix):
        if any(op.eval_at() or op.transpose() for op in postfix.postfix_op()):
            raise ValueError("a substitution is no value, and the transpose of a letter would be the letter")
        return _bounded(super().convert_postfix(postfix))

    def convert_binom(self, binom):
        return _bounded(sympy.binomial(self.convert_expr(binom.upper), self.convert_expr(binom.lower), evaluate=False))

    def handle_gcd_lcm(self, f, args):
        """Leave gcd and lcm of letters unevaluated, with their arguments in one order.

        sympy would treat letters as polynomials without a common factor.
        """
        if any(arg.free_symbols for arg in args):
            return sympy.Function(f)(*sorted(args, key=sympy.default_sort_key))
        return super().handle_gcd_lcm(f, args)

    def convert_func(self, func):
        if func.FUNC_SQRT() and func.root:
            return self._root(self.convert_expr(func.base), self.convert_expr(func.root))
        name = func.func_normal_single_arg()
        self.convert_degrees = name is not None and _TRIGONOMETRIC.match(name.start.text) is not None
        try:
            return _bounded(super().convert_func(func))
        finally:
            self.convert_degrees = False

    def _root(self, base, degree):
        if (
            isinstance(degree, sympy.Integer)
            and degree.is_odd
            and isinstance(base, sympy.Rational)
            and base.is_negative
        ):
            return sympy.Mul(-1, sympy.Pow(-base, 1 / degree, evaluate=False), evaluate=False)
        return sympy.Pow(base, sympy.Pow(degree, -1), evaluate=False)


def _bounded(tree: Any) -> Any:
    """Returns the tree. Raises TooLarge if it is too large."""
    if isinstance(tree, sympy.Basic):
        size_limits.size(tree)
    return tree


def read_number(text: str) -> sympy.Number:
    """Returns the number that `sympy.Number(text)` would read, but without its `parse_expr`, which calls `eval`.

    Raises:
        TooLarge: an exponent has more than four digits.
    """
    digits = text.replace(",", "").replace(" ", "")
    if _LONG_EXPONENT.search(digits):
        raise size_limits.TooLarge(digits)
    return sympy.Integer(int(digits)) if digits.isdecimal() else sympy.Float(digits)


def load() -> None:
    """Install Reader and read_number in latex2sympy2."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeout is disabled
    latex2sympy2._Latex2Sympy = Reader
    latex2sympy2.convert_number = lambda text: read_number(re.sub("^0,", "0.", text))


@lru_cache(maxsize=4096)
def parse(text: str) -> Tree | None:
    """Returns the tree that math-verify reads from LaTeX, or None if there is none or it is too large to compute.

    The result is cached, because a label is read once for each response of its group.
    """
    marked = applied(text)
    if marked is None:
        return None
    text = _SUBSCRIPT_OF_E.sub(r"X_{\1\2\3}", marked)
    text = _POWER_OF_LETTER.sub(r"{\g<0>}", text)
    tree, _ = extract_latex(_WHOLE.match(text), _AS_WRITTEN)
    if not isinstance(tree, sympy.Basic | MatrixBase) or tree in (sympy.nan, sympy.zoo):
        return None
    try:
        size_limits.size(tree)
        return _as_meant(tree)
    except UNDECIDED:
        return None


def _as_meant(tree: Tree) -> Tree:
    """Returns the tree with i as the imaginary unit, which math-verify reads as a letter, and with explicit log
    bases."""
    letters = {symbol: sympy.I for symbol in tree.free_symbols if symbol.name == "i"}
    return rebuilt(tree, lambda node: letters.get(node) or _quotient(node)) if letters or tree.has(sympy.log) else tree


def _quotient(node: sympy.Basic) -> sympy.Basic | None:
    """Returns a logarithm with two arguments as a quotient, because evalf would drop its base; None for other nodes."""
    if not isinstance(node, sympy.log) or len(node.args) == 1:
        return None
    above, below = (sympy.log(arg, evaluate=False) for arg in node.args)
    if node.args[1] == sympy.E:
        return above
    return sympy.Mul(above, sympy.Pow(below, -1, evaluate=False), evaluate=False)


def rebuilt(tree: Tree, change) -> Tree:
    """Returns the tree with each node replaced by `change(node)` unless that is None. Sums and products stay as
    written."""
    if isinstance(tree, MatrixBase):
        return tree.applyfunc(lambda element: rebuilt(element, change))
    args = [rebuilt(arg, change) if isinstance(arg, sympy.Basic) else arg for arg in tree.args]
    if any(new is not old for new, old in zip(args, tree.args, strict=True)):
        tree = tree.func(*args, evaluate=False) if isinstance(tree, _WRITTEN) else tree.func(*args)
    other = change(tree)
    return tree if other is None else other
