r"""Separates a number from what stands beside it: unit, degrees, money, percent, and words that multiply it."""

import re
from fractions import Fraction
from typing import NamedTuple

from r1zero.reward.equality.numerals import numeral
from r1zero.reward.equality.units import Unit, canonical, unit

_SCALES: dict[str, Fraction | int] = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "tenth": Fraction(1, 10), "hundredth": Fraction(1, 100), "thousandth": Fraction(1, 1000),
}  # fmt: skip
_CURRENCIES = {
    r"US\$": "dollar", r"\$": "dollar", "$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen",
    "₹": "rupee", "Rs.": "rupee",
}  # fmt: skip
# Words that change what a number means, and functions written without their backslash.
_NO_UNIT = frozenset(
    [
        "or",
        "and",
        "more",
        "less",
        "least",
        "most",
        "not",
        "no",
        "if",
        "for",
        "mod",
        "only",
        "when",
        "where",
        "odd",
        "even",
        "except",
        "to",
        "than",
        "about",
        "over",
        "under",
        "base",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "sqrt",
        "exp",
        "pi",
        "theta",
    ]
)

_LETTERS = "ACFHJKNTVWΩ"  # units of physics

_TEXT = r"\\text\s*\{[^{}]*\}"
_POWER = r"(?:\s*\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9]))?"
_PERCENT = re.compile(
    r"\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|per\s?cent)\s*\}|(?<![A-Za-z])per\s?cent|(?<![A-Za-z])pct)\s*$"
)
_DEGREE = re.compile(r"\s*\^\s*\{?\s*(?:\\circ|∘)\s*\}?\s*(?:\\text\s*\{\s*(?P<scale>[CF])\s*\}|(?P<scale1>[CF]))?$")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_MARKS = re.compile(r"""(?<=[0-9])\s*(''|"|')$""")
_TEXT_TAIL = re.compile(rf"(?:\s*(?:/|\\cdot(?![a-z]))?\s*{_TEXT}{_POWER})+\s*\.?$")
_FRACTION_TAIL = re.compile(rf"\s*\\frac\s*\{{\s*(?P<above>{_TEXT})\s*\}}\s*\{{\s*(?P<below>{_TEXT}{_POWER})\s*\}}$")
_BARE_POWER = r"(?:\^\{?[23]\}?)?"
_BARE_TAIL = re.compile(
    rf"(?P<space>\s*)(?P<unit>[^\W\d_](?:[^\W\d_]|[.\s])*{_BARE_POWER}(?:\s*/\s*[A-Za-z]+{_BARE_POWER})?)\s*$"
)
_DIGITS_BESIDE_POWERS = re.compile(r"\(|(?<![\^{\-0-9])[0-9]")
_NO_WRAPPER = re.compile(r"\\text\s*\{([^{}]*)\}|\\cdot")


class Quantity(NamedTuple):
    """A number or expression, separated from what stands beside it."""

    body: str  # the rest, for the parser
    unit: Unit | None
    percent: bool


def quantity(text: str) -> Quantity:
    r"""Separates unit, degree, currency or percent sign from the expression to which it belongs.

    >>> texts = (r"5\text{ cm}^2", "12 square feet", r"\$1.50", r"36 \text{ km} / \text{h}", "3 m/s^2")
    >>> [quantity(text).unit.known for text in texts]
    ['cm^2', 'foot^2', 'dollar', 'km/hour', 'm/second^2']
    >>> quantity(r"33\frac13\%"), quantity("2m").unit, quantity("a + b").body, quantity(r"-\$2.5\text{ million}").body
    (Quantity(body='33\\frac13', unit=None, percent=True), None, 'a + b', '-2500000')
    """
    if (percent := _PERCENT.search(text)) and percent.start() > 0:
        return Quantity(text[: percent.start()].strip(), None, True)
    if (degree := _DEGREE.search(text)) and degree.start() > 0 and not _TRIGONOMETRIC.search(text):
        name = {"C": "celsius", "F": "fahrenheit"}.get(degree["scale"] or degree["scale1"], "degree")
        return Quantity(text[: degree.start()].strip(), unit(name), False)
    if mark := _MARKS.search(text):
        return Quantity(text[: mark.start()], unit("feet" if mark[1] == "'" else "inches"), False)
    rest, currency = _without_currency(text)
    body, tail = _without_unit(rest)
    scale, names = _scaled(tail)
    if scale != 1:
        number = numeral(body)
        if number is None:
            return Quantity(text, None, False)
        body = str(number.value * scale)
    found = unit(names)
    if currency and (found is None or found.known == currency):
        return Quantity(body, unit(currency), False)
    return Quantity(body, unit(f"{currency} {names}") if currency else found, False)


def _without_currency(text: str) -> tuple[str, str]:
    """Returns the text without a currency sign before or after the number, and the currency's name, or ''."""
    sign, rest = ("-", text[1:].lstrip()) if text.startswith("-") else ("", text)
    for symbol, name in _CURRENCIES.items():
        if rest.startswith(symbol) and len(rest) > len(symbol):
            return sign + rest[len(symbol) :].strip(), name
        if rest.endswith(symbol) and numeral(rest[: -len(symbol)].strip()) is not None:
            return sign + rest[: -len(symbol)].strip(), name
    return text, ""


def _without_unit(text: str) -> tuple[str, str]:
    """Returns the text before the unit, and the words of the unit; the whole text and '' if there is none."""
    if (match := _FRACTION_TAIL.search(text)) and match.start() > 0:
        names = match["above"] + "/" + match["below"]
    elif (match := _TEXT_TAIL.search(text)) and match.start() > 0:
        names = match.group()
    elif (match := _BARE_TAIL.search(text)) and _is_bare_unit(text[: match.start()].strip(), match):
        names = match["unit"]
    else:
        return text, ""
    names = _NO_WRAPPER.sub(r" \1 ", names)
    written = set(re.findall(r"[^\W\d_]+", names))
    if not written or any(map(_is_no_unit, written)) or _DIGITS_BESIDE_POWERS.search(names):
        return text, ""
    return text[: match.start()].strip(), names


def _is_no_unit(word: str) -> bool:
    """Whether a word changes what the number means, or is a letter that may be a variable."""
    return word.lower() in _NO_UNIT or (len(word) == 1 and canonical(word) is None and word not in _LETTERS)


def _is_bare_unit(number: str, match: re.Match[str]) -> bool:
    """Whether the text ends in a unit without \\text: 5cm, 5 m and 5 apples do; 5m, 5 x and 5 ab may be products."""
    letters = match["unit"].replace(".", "").strip()
    if not number or numeral(number) is None:
        return False
    if canonical(letters) is None:
        return bool(match["space"]) and min(map(len, letters.split())) > 2
    return len(letters) > 1 or bool(match["space"])


def _scaled(names: str) -> tuple[Fraction | int, str]:
    """Returns the product of the words that multiply, and the other words."""
    scale: Fraction | int = 1
    rest = []
    for word in names.split():
        factor = _SCALES.get(word.lower().removesuffix("s"))
        if factor is None:
            rest.append(word)
        else:
            scale *= factor
    return scale, " ".join(rest)
