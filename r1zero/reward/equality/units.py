r"""Units and other names beside a number: units, degrees, money, percent.

A unit that is missing on one side does not make an answer wrong, but two different units do. The same holds for names
of counted things: 5 apples are not 5 oranges, but may be 5 red apples. math-verify drops units, so that 5 cm equals 5
m.
"""

import re
from typing import NamedTuple

# canonical name: spellings, in lower case, singular and without full stops
UNITS = {
    "mm": "mm millimeter millimetre",
    "cm": "cm centimeter centimetre",
    "m": "m meter metre",
    "km": "km kilometer kilometre",
    "inch": "in inch inche",
    "foot": "ft foot feet",
    "yard": "yd yard",
    "mile": "mi mile",
    "mg": "mg milligram",
    "g": "g gm gram gramme",
    "kg": "kg kilogram kilo",
    "pound": "lb pound",
    "ounce": "oz ounce",
    "ton": "ton tonne",
    "ml": "ml milliliter millilitre",
    "liter": "l liter litre",
    "gallon": "gal gallon",
    "quart": "qt quart",
    "pint": "pint",
    "cup": "cup",
    "second": "s sec second",
    "minute": "min minute",
    "hour": "h hr hour",
    "day": "day",
    "week": "week",
    "month": "month",
    "year": "yr year",
    "dollar": "dollar usd buck",
    "cent": "cent",
    "euro": "euro eur",
    "rupee": "rupee rs inr",
    "yen": "yen",
    "degree": "degree deg",
    "radian": "radian rad",
    "mile/hour": "mph",
    "km/hour": "kmph kmh kph",
    "pound sterling": "sterling gbp",
    "celsius": "celsius",
    "fahrenheit": "fahrenheit",
    "acre": "acre",
    "hectare": "hectare ha",
}
_CANONICAL = {spelling: name for name, spellings in UNITS.items() for spelling in spellings.split()}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
# Words that may follow a count without any meaning.
_EMPTY = frozenset(["unit", "total", "each", "in", "of", "the", "a", "an", "is", "are"])
_WORD = re.compile(r"[^\W\d_]+")
_FACTOR = re.compile(r"(?P<word>[^\W\d_]+)\s*(?:\^?\s*\{?\s*(?P<power>-?[0-9])\s*\}?)?")


class Unit(NamedTuple):
    """A unit, or the name of what was counted."""

    known: str | None  # canonical name, if every word is known
    words: frozenset[str]


def unit(names: str) -> Unit | None:
    """Returns the unit, or the counted thing, that the words name; None if they name nothing.

    >>> unit("sq. inches").known, sorted(unit("right triangles").words), unit("units")
    ('inch^2', ['right', 'triangle'], None)
    """
    known = canonical(names)
    words = frozenset(_singular(word) for word in _WORD.findall(names.lower())) - _EMPTY
    return Unit(known, words) if words else None


def same_unit(a: Unit | None, b: Unit | None) -> bool:
    """Whether two units are compatible: one is missing, they are equal, or one adds words to the other."""
    if a is None or b is None:
        return True
    if a.known and b.known:
        return a.known == b.known
    return a.words <= b.words or b.words <= a.words


def canonical(names: str) -> str | None:
    """Returns the canonical name of a unit with its powers, or None if any word is unknown.

    >>> [canonical(names) for names in (" sq. inches", "miles per hour", "m s^{-1}", "feet squared", "apples")]
    ['inch^2', 'mile/hour', 'm/second', 'foot^2', None]
    """
    powers: dict[str, int] = {}
    for number, part in enumerate(re.split(r"/|\bper\b|\ban?\b(?=\s+\w)", names.lower().replace(".", ""))):
        waiting, last = 1, None
        for factor in _FACTOR.finditer(part):
            word = factor["word"]
            if word in _POWERS:
                if last is None:
                    waiting = _POWERS[word]
                else:
                    powers[last] *= _POWERS[word]
            else:
                last = _CANONICAL.get(word) or _CANONICAL.get(word.removesuffix("s"))
                if last is None:
                    return None
                powers[last] = powers.get(last, 0) + (-1 if number else 1) * waiting * int(factor["power"] or 1)
                waiting = 1
    return _written(powers)


def _singular(word: str) -> str:
    return _CANONICAL.get(word) or _CANONICAL.get(word.removesuffix("s")) or word.removesuffix("s")


def _written(powers: dict[str, int]) -> str | None:
    sides = (
        [name if n in (1, -1) else f"{name}^{abs(n)}" for name, n in powers.items() if n * sign > 0] for sign in (1, -1)
    )
    return "/".join(" ".join(sorted(side)) for side in sides if side) or None
