r"""Determines the kind of an answer: list, tuple or interval, matrix, relation, set of real numbers, or expression.

The text is divided outside of its brackets, and only parts that cannot be divided go to the parser. For a tuple the
parser would take 50 times as long as for its elements, and math-verify would compare tuples by its own rules.
"""

import re
from functools import lru_cache
from typing import NamedTuple

import sympy

from r1zero.reward.equality import realsets
from r1zero.reward.equality.splitting import enclosed, split, tokens


class Leaf(NamedTuple):
    """A text that cannot be divided."""

    text: str


class Listing(NamedTuple):
    """Elements in any order: 1, 2 or {1, 2} or 1 and 2."""

    parts: tuple[str, ...]
    braces: bool


class Ordered(NamedTuple):
    """A tuple or an interval. The open interval from 1 to 2 and the point (1, 2) look the same."""

    opening: str
    parts: tuple[str, ...]
    closing: str


class Grid(NamedTuple):
    """A matrix."""

    text: str
    rows: tuple[tuple[str, ...], ...]


class Equation(NamedTuple):
    r"""a = b = c, and also x \in S."""

    sides: tuple[str, ...]


class Inequality(NamedTuple):
    """a < b <= c, with sides in ascending order, or a != b."""

    signs: tuple[str, ...]
    sides: tuple[str, ...]


class Region(NamedTuple):
    """A set of real numbers, and the letter that stands for its elements, if any."""

    name: str | None
    points: sympy.Set


Meaning = Leaf | Listing | Ordered | Grid | Equation | Inequality | Region

MAX_PARTS = 400
_COMMAS = re.compile(r"[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_OR = re.compile(r"(?<![A-Za-z\\])or(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])")
_AND = re.compile(r"(?<![A-Za-z\\])and(?![A-Za-z])|\\(?:land|wedge)(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])")
_TIGHT_COMMA, _LEADING_ZERO = re.compile("[0-9],[0-9]"), re.compile(",0[0-9]")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_RELATION = re.compile(r"=|<|>|\\(?:le|ge|ne|in|notin|equiv)(?![A-Za-z])")
_FLIPPED = {">": "<", r"\ge": r"\le"}
_SUCH_THAT = re.compile(r"[|:]")
_MATRIX = re.compile(
    r"(?P<open>[(\[])?\s*\\begin\s*\{(?P<kind>[pbB]?matrix|smallmatrix|array)\}(?:\s*\{[clr| ]*\})?(?P<body>.*)"
    r"\\end\s*\{(?P=kind)\}\s*[)\]]?",
    re.DOTALL,
)
_SYSTEM = re.compile(
    r"(?:\\begin\s*\{cases\}|\\\{\s*\\begin\s*\{(?:array|aligned|matrix)\}(?:\s*\{[clr| ]*\})?)(?P<body>[^&]*)"
    r"\\end\s*\{(?:cases|array|aligned|matrix)\}",
    re.DOTALL,
)
_ROWS, _CELLS = re.compile(r"\\\\"), re.compile("&")
LETTER = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_(?:[A-Za-z0-9]|\\(?:max|min)|\{(?:[A-Za-z0-9]+|\\(?:max|min)\s*)\}))?'*")
_WORDS = re.compile(r"\\text\{[^{}]*\}")
_FUNCTION = re.compile(r"[A-Za-z]'*\s*\(\s*[A-Za-z0-9]+\s*\)")


@lru_cache(maxsize=4096)
def read(text: str) -> Meaning:
    r"""Returns the kind of a text, which must be in the single spelling.

    >>> read("1, 2 or 3"), read("x = 2")
    (Listing(parts=('1', '2', '3'), braces=False), Equation(sides=('x', '2')))
    >>> read("(1, 2]")
    Ordered(opening='(', parts=('1', '2'), closing=']')
    >>> read(r"x < 1 or x \ge 2").points, read(r"\{x : 0 < x < 1\}").points, read(r"1 \pm 2").parts
    (Union(Interval.open(-oo, 1), Interval(2, oo)), Interval.open(0, 1), ('1 + 2', '1 - 2'))
    """
    return _environment(text) or _combined(text) or _related(text) or _in_brackets(text) or _varied(text) or Leaf(text)


def is_name(text: str) -> bool:
    """Whether the text is a letter, a function of one argument, or words."""
    return any(pattern.fullmatch(text) for pattern in (LETTER, _FUNCTION, _WORDS))


def _environment(text: str) -> Meaning | None:
    """Returns a matrix, or the equations of a system written one below the other."""
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in split(matrix["body"], _ROWS) if row]
        return Grid(text, tuple(tuple(split(row, _CELLS)) for row in rows))
    if system := _SYSTEM.fullmatch(text):
        return read(", ".join(row.rstrip(",; ") for row in split(system["body"], _ROWS) if row))
    return None


def _combined(text: str) -> Meaning | None:
    """Returns regions joined by words or commas, or a list."""
    for words, join in ((_OR, sympy.Union), (_AND, sympy.Intersection)):
        if len(parts := split(text, words)) > 1 and (region := _joined([read(part) for part in parts], join)):
            return region
    parts = _elements(text)
    if len(parts) < 2:
        return None
    meanings = [read(part) for part in parts]
    if not all(isinstance(meaning, Region) for meaning in meanings):
        return _listing(parts, braces=False)
    # x > 1, x < 3 are conditions on one number; x < 1, x > 3 are separate cases.
    both, either = _joined(meanings, sympy.Intersection), _joined(meanings, sympy.Union)
    if both is None or either is None:
        return _listing(parts, braces=False)
    if both.points is sympy.S.EmptySet:
        return either
    return both if either.points == sympy.S.Reals else _listing(parts, braces=False)


def _joined(meanings: list[Meaning], join: type[sympy.Set]) -> Region | None:
    regions = [meaning for meaning in meanings if isinstance(meaning, Region)]
    if len(regions) < len(meanings) or len({region.name for region in regions}) > 1:
        return None
    return Region(regions[0].name, join(*(region.points for region in regions)))


def _elements(text: str, bracketed: bool = False) -> list[str]:
    """Returns the parts of a list. bracketed: whether the text was in brackets."""
    return [part for part in split(_ungrouped(text, bracketed), _COMMAS) if part]


def _ungrouped(text: str, bracketed: bool) -> str:
    """Remove the commas between thousands, outside of the brackets that are in the text.

    All commas separate if some that cannot be between thousands have no space: 1,7,103. In brackets they also do if
    none has a space: (100,200) is a pair. A part that would begin with 0, as in (1,000), shows thousands.
    """
    if not _THOUSANDS.search(text):
        return text
    outside = {place for _, place, depth in tokens(text) if depth == 0}
    grouped = _THOUSANDS.sub(lambda match: match[0].replace(",", "") if match.start() in outside else match[0], text)
    if _TIGHT_COMMA.search(_outer(grouped)) or (bracketed and ", " not in text):
        return grouped if _LEADING_ZERO.search(_outer(text)) else text
    return grouped


def _outer(text: str) -> str:
    """Returns what is outside of all brackets."""
    return "".join(token for token, _, depth in tokens(text) if depth == 0)


def _listing(parts: list[str], braces: bool) -> Listing:
    return Listing(tuple(variant for part in parts for variant in variants(part)), braces)


def variants(text: str) -> list[str]:
    r"""Returns the two values of a text with \pm, or just the text if it has none."""
    if not _PLUS_MINUS.search(text):
        return [text]
    upper = _PLUS_MINUS.sub(lambda match: "+" if match[1] == "pm" else "-", text)
    return [upper, _PLUS_MINUS.sub(lambda match: "-" if match[1] == "pm" else "+", text)]


def _varied(text: str) -> Meaning | None:
    return _listing([text], braces=False) if _PLUS_MINUS.search(text) else None


def _related(text: str) -> Meaning | None:
    """Returns an equation, an inequality, or a set that is written with operations."""
    sides = split(text, _RELATION)
    if len(sides) == 1:
        points = realsets.from_operations(text)
        return Region(None, points) if points is not None else None
    signs = tuple(match.group() for match in _RELATION.finditer(text) if _outside(text, match.start()))
    if len(signs) != len(sides) - 1 or not all(sides):
        return None
    if _PLUS_MINUS.search(text):
        return _listing([text], braces=False)
    if set(signs) <= {"=", r"\equiv"} or signs == (r"\in",):
        return Equation(tuple(sides))
    if signs in ((r"\ne",), (r"\notin",)):
        if signs == (r"\ne",) and is_name(sides[1]):
            sides = sides[::-1]
        points = realsets.without(sides[1], r"\notin" in signs) if is_name(sides[0]) else None
        return Region(sides[0], points) if points is not None else Inequality(signs, tuple(sides))
    return _chain(signs, sides)


def _outside(text: str, place: int) -> bool:
    return len(split(text[:place] + "\x00" + text[place:], re.compile("\x00"))) == 2


def _chain(signs: tuple[str, ...], sides: list[str]) -> Meaning | None:
    if set(signs) <= set(_FLIPPED):
        signs, sides = tuple(_FLIPPED[sign] for sign in reversed(signs)), sides[::-1]
    if not set(signs) <= set(_FLIPPED.values()):
        return None
    names = [side for side in sides if is_name(side)]
    points = realsets.from_chain(signs, sides, names[0]) if len(names) == 1 else None
    return Region(names[0], points) if points is not None else Inequality(signs, tuple(sides))


def _in_brackets(text: str) -> Meaning | None:
    brackets = enclosed(text)
    if brackets is None:
        return None
    opening, inside, closing = brackets
    if (opening, closing) == (r"\{", r"\}") or ((opening, closing) == ("{", "}") and len(_elements(inside)) > 1):
        return _in_braces(inside)
    if (opening, closing) in (("{", "}"), ("(", ")")) and len(_elements(inside, opening == "(")) < 2:
        return read(inside) if inside else None
    if opening in "([" and closing in ")]":
        parts = split(_ungrouped(inside, bracketed=True), _COMMAS)
        if 1 < len(parts) <= MAX_PARTS and all(parts):
            varied = _PLUS_MINUS.search(inside)
            return _listing([text], braces=False) if varied else Ordered(opening, tuple(parts), closing)
    return None


def _in_braces(inside: str) -> Meaning | None:
    if not inside:
        return Region(None, sympy.S.EmptySet)
    such = split(inside, _SUCH_THAT)
    if len(such) == 2:
        return _condition(*such)
    return _listing(_elements(inside, bracketed=True), braces=True)


def _condition(element: str, condition: str) -> Meaning | None:
    r"""Returns the meaning of {x : x > 2} or {x \in R | x > 2}, which is that of the condition. Other domains: None."""
    name, *domain = split(element, re.compile(r"\\in(?![A-Za-z])"))
    if domain not in ([], [r"\mathbb{R}"]):
        return None
    meaning = read(condition)
    if isinstance(meaning, Region):
        return meaning._replace(name=None) if meaning.name == name else None
    return meaning if isinstance(meaning, Equation | Inequality) else None
