r"""Is this answer equal to that label? Decided by math-verify and sympy; the only module that imports them."""

import logging
import re
from functools import lru_cache

from math_verify import verify
from math_verify.parser import LatexExtractionConfig, extract_latex
from sympy import Basic, MatrixBase

MAX_CHARACTERS = 1000

_LATEX = LatexExtractionConfig()
_WHOLE = re.compile(r"(?P<first_latexBoxed>.+)", re.DOTALL)


def equal(answer: str, label: str) -> bool:
    answer, label = answer.strip(), label.strip()
    if not answer or not label:
        return False
    if answer == label:
        return True
    if max(len(answer), len(label)) > MAX_CHARACTERS:
        return False
    gold, pred = parse_label(label), parse(answer)
    return bool(gold and pred) and verify(gold, pred, timeout_seconds=None)


@lru_cache(maxsize=4096)
def parse_label(label: str) -> list[Basic | MatrixBase | str]:
    return parse(label)


def parse(text: str) -> list[Basic | MatrixBase | str]:
    match = _WHOLE.match(text)
    value, normalised = extract_latex(match, _LATEX)
    return [value, normalised] if value is not None else []


def warm() -> None:
    """Fills the grammar's tables, which a forked worker then has from its first answer on."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we keep the time ourselves
    equal("\\frac{1}{2}", "(1, 2)")
