r"""The door to math-verify, latex2sympy2_extended and sympy: text to a sympy tree, and two trees compared.

Only math-verify's LaTeX side is used. Its expression extractor evaluates text as Python through sympy's `parse_expr`
and is never given any; so are its searches through a response, because what to read is settled before.
"""

import logging
import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from antlr4.atn.PredictionMode import PredictionMode
from antlr4.error.ErrorStrategy import BailErrorStrategy
from antlr4.error.Errors import ParseCancellationException
from latex2sympy2_extended import latex2sympy2
from math_verify import verify
from math_verify.parser import LatexExtractionConfig, extract_latex
from sympy import (
    And, Basic, Expr, FiniteSet, Float, GreaterThan, I, Interval, LessThan, Mul, Rational, Set, StrictGreaterThan,
    StrictLessThan, Tuple, oo,
)  # fmt: skip
from sympy.matrices import MatrixBase

from r1zero.reward import bounds
from r1zero.reward.differ import surely_differ
from r1zero.reward.numerals import close, ends

Tree = Basic | MatrixBase

_WITH_UNITS = LatexExtractionConfig()
_NO_UNITS = replace(_WITH_UNITS, normalization_config=replace(_WITH_UNITS.normalization_config, units=False))
_WHOLE = re.compile(r"(?P<first_latexBoxed>.+)", re.DOTALL)
_UNIT_TAIL = re.compile(r"(?:\}|[A-Za-z]{3})\s*(?:\^\s*\{?[23]\}?)?$")
# The power of a letter needs the parser's slow second stage, unless braces part it from what stands before.
_POWER_OF_LETTER = re.compile(
    r"(?:(?<![A-Za-z\\_])(?P<letter>[a-df-zA-DF-Z])|(?P<greek>\\(?:pi|theta|alpha|beta|lambda|mu|omega)))"
    r"(?=\s*\^\s*(?:\{[^{}\\]*\}|[0-9A-SU-Za-z])(?!\s*\())"
)
_SHORT_SUBSCRIPT = re.compile(r"_\{([0-9A-Za-z])\}")
_PRECISION = 30  # digits


class TwoStageParser(latex2sympy2.PSParser):
    """ANTLR's own advice for speed: predict without context first, with it only where that fails.

    The grammar needs full context for few texts, but pays for it (40 to 170 ms) on every tuple. Where the first stage
    succeeds its tree is the second stage's.
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


class _Number(NamedTuple):
    value: Fraction
    exact: bool  # all of its decimals are known and there is an end to them


def load() -> None:
    """Makes the grammar's parser the two-stage one and fills its tables, which every fork then shares."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we keep the time ourselves
    latex2sympy2.PSParser = TwoStageParser
    for text in _GRAMMAR_SAMPLES:
        parse(text)


@lru_cache(maxsize=4096)
def parse_label(text: str) -> Tree | None:
    """As `parse`; a label comes back once for each response of its group."""
    return parse(text)


def parse(text: str) -> Tree | None:
    """The tree that math-verify reads from LaTeX, or None where it reads none or one too large to compute.

    math-verify takes any last letter of a unit for one, the c of `a + b + c` too; units are left to it only at the end
    of a word or of \\text{..}.
    """
    text = _SHORT_SUBSCRIPT.sub(r"_\1", text)
    text = _POWER_OF_LETTER.sub(r"{\g<0>}", text)
    config = _WITH_UNITS if _UNIT_TAIL.search(text) else _NO_UNITS
    tree, _ = extract_latex(_WHOLE.match(text), config)
    if tree is None or not isinstance(tree, Basic | MatrixBase) or not bounds.computable(tree):
        return None
    return _with_imaginary_unit(tree)


def _with_imaginary_unit(tree: Tree) -> Tree:
    """math-verify reads i as a letter like any other; here its square is -1."""
    letters = {symbol for symbol in tree.free_symbols if symbol.name == "i"}
    return tree.xreplace(dict.fromkeys(letters, I)) if letters else tree


def same(gold: Tree, pred: Tree) -> bool:
    """math-verify's decision, but for what its rounding would let pass (`_rounds_away`)."""
    gold = _as_interval(gold) if isinstance(pred, Set) else gold
    if surely_differ(gold, pred):
        return False
    return verify(gold, pred, timeout_seconds=None) and not _rounds_away(gold, pred)


def _as_interval(tree: Tree) -> Tree:
    """math-verify lets a set answer a relation, and has sympy solve it; 1 <= x < 3 needs no solving."""
    low, high, left_open, right_open = -oo, oo, True, True
    for relation in tree.args if isinstance(tree, And) else (tree,):
        if not isinstance(relation, StrictLessThan | LessThan | StrictGreaterThan | GreaterThan):
            return tree
        small, large = relation.lts, relation.gts
        strict = isinstance(relation, StrictLessThan | StrictGreaterThan)
        if large.is_Symbol and small.is_number and low == -oo:
            low, left_open = small, strict
        elif small.is_Symbol and large.is_number and high == oo:
            high, right_open = large, strict
        else:
            return tree
    return Interval(low, high, left_open, right_open) if len(tree.free_symbols) == 1 else tree


def _rounds_away(gold: Tree, pred: Tree) -> bool:
    """Whether decimals agree only because both were rounded: 0.0000001 and 0.0000002 to six decimals."""
    if not (gold.has(Float) or pred.has(Float)):
        return False
    pairs = zip(_numbers(gold), _numbers(pred), strict=False)
    return any(a is not None and b is not None and not _agree(a, b) for a, b in pairs)


def _agree(a: _Number, b: _Number) -> bool:
    return a.value == b.value if a.exact and b.exact else close(a.value, b.value)


def _numbers(tree: Tree) -> list[_Number | None]:
    """The elements of a tuple, set, interval or matrix, or the number itself, as exactly as they are known."""
    if isinstance(tree, Interval):
        return [_number(tree.start), _number(tree.end)]
    if isinstance(tree, MatrixBase):
        return [_number(element) for element in tree.flat()]
    if isinstance(tree, FiniteSet):
        elements = [_number(element) for element in tree.args]
        return sorted(elements) if None not in elements else []
    return [_number(element) for element in (tree.args if isinstance(tree, Tuple) else (tree,))]


def _number(tree: Tree) -> _Number | None:
    if isinstance(tree, Rational):
        value = Fraction(tree.p, tree.q)
        return _Number(value, ends(value))
    if isinstance(tree, Float):
        return _Number(Fraction(str(tree)), True)
    if isinstance(tree, Mul) and all(isinstance(arg, Rational | Float) for arg in tree.args):
        return _number(tree.doit())
    if isinstance(tree, Expr) and tree.is_number and tree.is_real:
        return _Number(Fraction(str(tree.evalf(_PRECISION))), False)
    return None


_GRAMMAR_SAMPLES = (
    r"-\frac{3}{4}", r"2\sqrt{3}", r"\frac{\pi}{6}", r"\left( 2, -\frac{1}{3} \right)", r"(1, 2, 3)", r"1, 2, 3",
    r"\{1, \sqrt{2}\}", r"[0, \infty)", r"(-\infty, -1) \cup (2, 3]", r"x = 5", r"2x + 3y = 7", r"x^2 + 2x - 1",
    r"(x + 1)(x - 2)^2", r"1 \le x < 3", r"x > 2", r"\text{even}", r"A", r"\text{(A)}", r"\log_2 3 + \ln 5",
    r"\sin \frac{\pi}{3}", r"\begin{pmatrix} 1 & -2 \\ \frac{1}{2} & 0 \end{pmatrix}", r"3 - 4i", r"e^{-2x}", r"n!",
    r"\binom{n}{k}", r"90^\circ", r"10\%", r"1.5 \times 10^{3}", r"x_1 + x_2", r"f(x) = x^2", r"\pm \sqrt{5}",
    r"\frac{1 + \sqrt{5}}{2}", r"\sqrt[3]{x}", r"x \in [1, 2]", r"|x - 1|", r"a \cdot b", r"2^{n+1} - 1", r"1:2",
    r"\mathbb{R}", r"\lfloor x \rfloor", r"\frac{a^2 + b^2}{2ab}", r"(2 \sqrt{2}, \frac{5 \pi}{4})", r"x = 1, y = -2",
)  # fmt: skip
