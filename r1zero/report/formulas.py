"""Finds LaTeX formulas in a text and turns them into MathML, which browsers show without a script or a network.

The text comes from a model and is not trusted. Only known elements and attributes with harmless values reach the page,
all text is escaped, and what cannot be converted is left to the caller as text.
"""

import html
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from markupsafe import Markup, escape

LONGEST = 1000
"""Characters of the longest formula that is converted. It bounds the time and the depth of the conversion."""

_FORMULA = re.compile(
    rf"""
    \$\$ (?P<dollars>[^$]{{1,{LONGEST}}}) \$\$
    | \\\[ (?P<brackets>.{{1,{LONGEST}}}?) \\\]
    | \\\( (?P<parentheses>.{{1,{LONGEST}}}?) \\\)
    # As in pandoc, no space follows the first $ or precedes the last one, and no digit follows it: $5 is a price.
    | (?<![\\$]) \$ (?![\s$]) (?P<dollar>(?:[^$\\]|\\.){{1,{LONGEST}}}) (?<!\s) \$ (?![\d$])
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCKS = ("dollars", "brackets")
"""The kinds of formulas that stand on a line of their own."""
_MACRO = re.compile(r"\\(?:def|newcommand)(?![a-zA-Z])")
"""A macro could expand to any length."""
_ENVIRONMENTS = {"{aligned}": "{align*}", "{gathered}": "{gather*}"}
"""Environment -> the one that looks the same and that latex2mathml knows."""
_REFERENCE = re.compile(r"&#x([0-9A-Fa-f]{1,6});")
"""latex2mathml writes characters in this way."""
_ELEMENTS = frozenset(
    re.split(
        r"\s+",
        "math mrow mi mn mo mtext mspace msup msub msubsup mfrac msqrt mroot mover munder munderover "
        "mtable mtr mtd mstyle mpadded mphantom menclose",
    )
)
_CHILDREN = {**dict.fromkeys(("mfrac", "mroot", "msup", "msub", "mover", "munder"), 2), "msubsup": 3, "munderover": 3}
"""Element -> the number of children that it must have."""
_LENGTH = r"[+-]?\d{0,2}(?:\.\d{1,4})?(?:em|ex|px|pt)?"
_ATTRIBUTES = {
    **dict.fromkeys(("display", "form", "mathvariant", "columnalign", "rowlines", "columnlines"), r"[a-z -]{1,99}"),
    **dict.fromkeys(
        ("stretchy", "fence", "separator", "accent", "accentunder", "largeop", "movablelimits", "displaystyle"),
        "true|false",
    ),
    **dict.fromkeys(("width", "height", "depth", "lspace", "rspace", "voffset", "minsize", "maxsize"), _LENGTH),
    **dict.fromkeys(("mathsize", "linethickness"), _LENGTH),
    **dict.fromkeys(("rowspacing", "columnspacing"), rf"{_LENGTH}(?: {_LENGTH}){{0,9}}"),
    "scriptlevel": r"[+-]?\d",
    "mathcolor": r"[a-zA-Z]{1,20}|#[0-9a-fA-F]{3,6}",
}
"""Attribute -> pattern of its permitted values. Others are left out."""


class Formula(NamedTuple):
    """A formula in a text."""

    start: int
    stop: int
    """The formula with its delimiters is text[start:stop]."""
    mathml: Markup


def find(text: str) -> Iterator[Formula]:
    """Yields the formulas between $..$, $$..$$, \\(..\\) and \\[..\\] that can be converted."""
    for match in _FORMULA.finditer(text):
        kind = match.lastgroup or ""
        mathml = convert(match[kind], is_block=kind in _BLOCKS)
        if mathml is not None:
            yield Formula(match.start(), match.end(), mathml)


def convert(latex: str, *, is_block: bool) -> Markup | None:
    """Returns a <math> element, or None for LaTeX that latex2mathml does not support."""
    from latex2mathml import exceptions
    from latex2mathml.converter import convert_to_element

    if _MACRO.search(latex) or "\n\n" in latex:
        return None
    for name, replacement in _ENVIRONMENTS.items():
        latex = latex.replace(name, replacement)
    # The package has no common base class of its errors, and malformed input also ends in errors of Python.
    own = (one for one in vars(exceptions).values() if isinstance(one, type) and issubclass(one, Exception))
    python = (LookupError, ValueError, TypeError, AttributeError, RuntimeError, StopIteration)
    failures: tuple[type[Exception], ...] = (*own, *python)
    try:
        element = convert_to_element(latex, display="block" if is_block else "inline")
        return Markup(_html(element))
    except failures:
        return None


def _html(element: Any) -> str:
    """Returns an element as HTML. Raises ValueError for an element that is not permitted."""
    if element.tag not in _ELEMENTS:
        raise ValueError(f"<{element.tag}> is not permitted")
    if len(element) != _CHILDREN.get(element.tag, len(element)):
        raise ValueError(f"<{element.tag}> lacks a part")
    attributes = {
        name: value for name, value in element.attrib.items() if re.fullmatch(_ATTRIBUTES.get(name, r"(?!)"), value)
    }
    tag = element.tag
    if tag == "menclose":  # which MathML Core, the part that browsers implement, does not have
        tag, attributes = "mrow", {"class": "frame" if element.get("notation") == "box" else "struck"}
    text = _REFERENCE.sub(lambda match: html.unescape(match[0]), element.text or "")
    if tag == "mi" and text.startswith(("\\", "&")):  # a command, or an environment, that is not known
        raise ValueError(f"{text} is not known")
    written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f"<{tag}{written}>{escape(text)}{''.join(map(_html, element))}</{tag}>"
