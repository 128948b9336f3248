r"""What stands beside a number: units, degrees, money, percent.

A unit missing on one side does not make an answer wrong; two units that are known to differ do. math-verify drops any
unit it finds, so that 5 cm equals 5 m, and takes a last letter such as the m of 2m for one: both are refused here.
"""

import re
from typing import NamedTuple

from r1zero.reward.numerals import numeral

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
    "celsius": "celsius",
    "fahrenheit": "fahrenheit",
    "am": "am",
    "pm": "pm",
    "acre": "acre",
    "hectare": "hectare ha",
}
_CANONICAL = {spelling: name for name, spellings in UNITS.items() for spelling in spellings.split()}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_SYMBOLS = {
    "\\$": "dollar",
    "\\textdollar": "dollar",
    "$": "dollar",
    "€": "euro",
    "\\euro": "euro",
    "£": "pound sterling",
    "¥": "yen",
    "₹": "rupee",
}

_DEGREE = re.compile(r"\s*(?:\^\s*\{?\s*(?:\\circ|\\degree|∘)\s*\}?|°|\\degree)\s*$")
_PERCENT = re.compile(
    r"\s*(?:\\?%|\\(?:text|mathrm|mbox)\s*\{\s*(?:\\?%|percent)\s*\}|(?<![A-Za-z])percent|(?<![A-Za-z])pct)\s*$"
)
_EXPONENT = r"\s*(?:\^\s*(?:\{\s*(?P<n>[23])\s*\}|(?P<n1>[23]))|(?P<n2>[²³]))?\s*$"
_TEXT_TAIL = re.compile(r"\s*\\(?:text[a-z]*|mathrm|mathit|mbox|hbox)\s*\{(?P<unit>[^{}]*)\}" + _EXPONENT)
_BARE_TAIL = re.compile(r"(?P<space>\s*)(?P<unit>[A-Za-z][A-Za-z./\s]*?)" + _EXPONENT)
_SPACE = re.compile(r"\\[,;:! ]|~|\\quad")
_IMAGINARY = re.compile(r"\\(?:text|mathrm|mathit|mathbf|operatorname)\s*\{\s*([ieIE])\s*\}")


class Quantity(NamedTuple):
    body: str  # what is left for the parser
    unit: str | None  # canonical, None where none is known
    percent: bool


def quantity(text: str) -> Quantity:
    r"""Splits a known unit, degree, currency or percent sign from the expression it belongs to.

    >>> quantity(r"5\text{ cm}^2"), quantity("12 square feet").unit, quantity(r"\$1.50").unit
    (Quantity(body='5', unit='cm^2', percent=False), 'foot^2', 'dollar')
    >>> quantity(r"33\frac13\%"), quantity("2m").unit, quantity("a + b + c").body
    (Quantity(body='33\\frac13', unit=None, percent=True), None, 'a + b + c')
    """
    text = _IMAGINARY.sub(r"\1", text)
    if percent := _PERCENT.search(text):
        return Quantity(text[: percent.start()].strip() or text, None, percent.start() > 0)
    if (degree := _DEGREE.search(text)) and degree.start() > 0:
        return Quantity(text[: degree.start()].strip(), "degree", False)
    for symbol, unit in _SYMBOLS.items():
        if text.startswith(symbol) and len(text) > len(symbol):
            return Quantity(text[len(symbol) :].strip(), unit, False)
    if (tail := _TEXT_TAIL.search(text)) and tail.start() > 0:
        unit = canonical(tail["unit"], _power(tail))
        return Quantity(text[: tail.start()].strip(), unit, False) if unit else Quantity(text, None, False)
    if (tail := _BARE_TAIL.search(text)) and tail.start() > 0 and numeral(text[: tail.start()].strip()) is not None:
        unit = canonical(tail["unit"], _power(tail))
        if unit and (len(tail["unit"]) > 1 or tail["space"]):
            return Quantity(text[: tail.start()].strip(), unit, False)
    return Quantity(text, None, False)


def _power(tail: re.Match[str]) -> int:
    written = tail["n"] or tail["n1"] or tail["n2"] or "1"
    return {"²": 2, "³": 3}.get(written) or int(written)


def canonical(words: str, power: int) -> str | None:
    """The unit's one name, with its power; None if any word of it is unknown.

    >>> canonical(" sq. inches", 1), canonical("miles per hour", 1), canonical("p.m.", 1), canonical("apples", 1)
    ('inch^2', 'mile/hour', 'pm', None)
    """
    words = _SPACE.sub(" ", words).lower()
    above, *below = re.split(r"/|\bper\b|\ban?\b(?=\s+\w)", words.replace(".", "").strip())
    names = []
    for part in (above, *below):
        exponent, found = power if part is above else 1, []
        for word in part.split():
            if word in _POWERS:
                exponent = _POWERS[word]
            elif word not in ("degree", "degrees") or len(part.split()) == 1:
                found.append(_CANONICAL.get(word) or _CANONICAL.get(word.removesuffix("s")))
        if len(found) != 1 or found[0] is None:
            return None
        names.append(found[0] if exponent == 1 else f"{found[0]}^{exponent}")
    return "/".join(names)
