r"""The door to math-verify, latex2sympy2_extended and sympy: text to a sympy tree, and two trees compared.

Only math-verify's LaTeX side is used. Its expression extractor evaluates text as Python through sympy's `parse_expr`
and is never given any; so are its searches through a response, because what to read is settled before.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import sympy
from antlr4.atn.PredictionMode import PredictionMode
from antlr4.error.Errors import ParseCancellationException
from antlr4.error.ErrorStrategy import BailErrorStrategy
from latex2sympy2_extended import latex2sympy2
from math_verify import verify
from math_verify.parser import LatexExtractionConfig, extract_latex
from sympy.matrices import MatrixBase

from r1zero.reward import bounds
from r1zero.reward.differ import surely_differ
from r1zero.reward.numerals import close, ends

Tree = sympy.Basic | MatrixBase

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


class Reader(latex2sympy2._Latex2Sympy):
    """latex2sympy2_extended's converter, but for its parser and for how it reads a numeral."""

    def create_parser(self, latex_str):
        parser = super().create_parser(latex_str)
        parser.__class__ = TwoStageParser
        return parser

    def parse_number(self, text):
        return read_number(text)


def read_number(text: str) -> sympy.Number:
    """The numeral as sympy's own `sympy.Number(text)` reads it, which goes through `parse_expr`, that is through `eval`."""
    digits = text.replace(",", "").replace(" ", "")
    return sympy.Integer(int(digits)) if digits.isdecimal() else sympy.Float(digits)


def load() -> None:
    """Puts our reader in place."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we keep the time ourselves
    latex2sympy2._Latex2Sympy = Reader
    latex2sympy2.convert_number = lambda text: read_number(re.sub("^0,", "0.", text))


def warm(samples: Iterable[str | tuple[str, str]]) -> Iterator[None]:
    """Reads one sample a step, or reads two and compares them (up to 0.5 s for the first of a kind)."""
    for sample in samples:
        if isinstance(sample, str):
            parse(sample)
        else:
            same(*map(parse, sample))
        yield


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
    if not isinstance(tree, sympy.Basic | MatrixBase) or not bounds.computable(tree) or tree in (sympy.nan, sympy.zoo):
        return None
    return _with_imaginary_unit(tree)


def _with_imaginary_unit(tree: Tree) -> Tree:
    """math-verify reads i as a letter like any other; here its square is -1."""
    letters = {symbol for symbol in tree.free_symbols if symbol.name == "i"}
    return tree.xreplace(dict.fromkeys(letters, sympy.I)) if letters else tree


def same(gold: Tree, pred: Tree) -> bool:
    """math-verify's decision, but for what its rounding would let pass (`_rounds_away`)."""
    gold = _as_interval(gold) if isinstance(pred, sympy.Set) else gold
    if surely_differ(gold, pred):
        return False
    return verify(gold, pred, timeout_seconds=None) and not _rounds_away(gold, pred)


def _as_interval(tree: Tree) -> Tree:
    """math-verify lets a set answer a relation, and has sympy solve it; 1 <= x < 3 needs no solving."""
    low, high, left_open, right_open = -sympy.oo, sympy.oo, True, True
    for relation in tree.args if isinstance(tree, sympy.And) else (tree,):
        if not isinstance(
            relation, sympy.StrictLessThan | sympy.LessThan | sympy.StrictGreaterThan | sympy.GreaterThan
        ):
            return tree
        small, large = relation.lts, relation.gts
        strict = isinstance(relation, sympy.StrictLessThan | sympy.StrictGreaterThan)
        if large.is_Symbol and small.is_number and low == -sympy.oo:
            low, left_open = small, strict
        elif small.is_Symbol and large.is_number and high == sympy.oo:
            high, right_open = large, strict
        else:
            return tree
    return sympy.Interval(low, high, left_open, right_open) if len(tree.free_symbols) == 1 else tree


def _rounds_away(gold: Tree, pred: Tree) -> bool:
    """Whether decimals agree only because both were rounded: 0.0000001 and 0.0000002 to six decimals."""
    if not (gold.has(sympy.Float) or pred.has(sympy.Float)):
        return False
    pairs = zip(_numbers(gold), _numbers(pred), strict=False)
    return any(a is not None and b is not None and not _agree(a, b) for a, b in pairs)


class _Number(NamedTuple):
    value: Fraction
    exact: bool  # all of its decimals are known and there is an end to them


def _agree(a: _Number, b: _Number) -> bool:
    return a.value == b.value if a.exact and b.exact else close(a.value, b.value)


def _numbers(tree: Tree) -> list[_Number | None]:
    """The elements of a tuple, set, interval or matrix, or the number itself, as exactly as they are known."""
    if isinstance(tree, sympy.Interval):
        return [_number(tree.start), _number(tree.end)]
    if isinstance(tree, MatrixBase):
        return [_number(element) for element in tree.flat()]
    if isinstance(tree, sympy.FiniteSet):
        elements = [_number(element) for element in tree.args]
        return sorted(elements) if None not in elements else []
    return [_number(element) for element in (tree.args if isinstance(tree, sympy.Tuple) else (tree,))]


def _number(tree: Tree) -> _Number | None:
    if isinstance(tree, sympy.Rational):
        value = Fraction(tree.p, tree.q)
        return _Number(value, ends(value))
    if isinstance(tree, sympy.Float):
        return _Number(Fraction(str(tree)), True)
    if isinstance(tree, sympy.Mul) and all(isinstance(arg, sympy.Rational | sympy.Float) for arg in tree.args):
        return _number(tree.doit())
    if isinstance(tree, sympy.Expr) and tree.is_number and tree.is_real:
        return _Number(Fraction(str(tree.evalf(_PRECISION))), False)
    return None
