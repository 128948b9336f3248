"""Notations that look like expressions but are none: words, dates, counts, times, ratios, and numbers in a base."""

import re
import unicodedata
from math import gcd
from typing import NamedTuple

from r1zero.reward.equality.numerals import numeral
from r1zero.reward.equality.units import canonical

_WRAPPER = re.compile(r"\\text\s*\{([^{}]*)\}")
_BLANKS = re.compile(r"\s+")
_LIST = re.compile(r",|;|\band\b|\bor\b")
_WORDS = re.compile(r"\\text\s*\{(?P<wrapped>[^{}\\$]*)\}|(?P<bare>[^{}\\$]*)")
_WITHIN_WORDS = re.compile(r"[\s.'-]+")
_BARE_WORD = 3  # letters; fewer may be a product of variables
_CLOCK = re.compile(
    r"(?P<hour>[0-9]{1,2})(?:\s*:\s*(?P<minute>[0-9]{2})(?:\s*:\s*(?P<second>[0-9]{2}))?)?"
    r"(?:\s*(?P<half>[AaPp])\.?\s*[Mm]\.?)?"
)
_TO = re.compile(r"(?P<a>[0-9.]+)\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(?P<b>[0-9.]+)")
_BASED = re.compile(
    r"\(?(?P<digits>[0-9][0-9A-Za-z]*|[A-Za-z][A-Za-z]*[0-9][0-9A-Za-z]*)\)?\s*"
    r"(?:_\s*\{?\s*\(?(?P<base>[0-9]{1,2}|[a-z]+)\)?\s*\}?|\s*\(?base[- ]?(?P<base1>[0-9]{1,2}|[a-z]+)\)?)"
)
_NUMBER_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_COUNT = re.compile(r"\s*,?\s*(?:and\b)?\s*(?P<count>[0-9][0-9.,/]*)\s*(?P<unit>[^\W\d_]+\.?)")
_TOKENS = re.compile(r"[^\W\d_]+|[0-9]+(?:\.[0-9]+)?")
_PHRASE = re.compile(r"[\w\s.,'():/-]+")


class Clock(NamedTuple):
    """A time of day."""

    time: tuple[int, ...]  # hour, minute, and the second if it is written
    half: str | None  # a or p; None if neither is written


class Based(NamedTuple):
    """A number that is written in a base."""

    digits: str
    base: int


def unwrapped(text: str) -> str:
    r"""Returns the text without \text{..} around its words."""
    return _BLANKS.sub(" ", _WRAPPER.sub(r" \1 ", text)).strip()


def words(text: str, short: bool = False) -> frozenset[str]:
    r"""Returns choice letters, or words of any script, in any order; empty if the text is mathematics.

    Bare letters are words if there are at least three, or in a list of single capitals. Fewer letters may be a product
    of variables, unless `short` is set because they are compared with a word. A sign between single letters is a sign.

    >>> [sorted(words(text)) for text in (r"\text{B, C}", "Monday", "(D)", "да", "two-digit", "xy", "x-y")]
    [['b', 'c'], ['monday'], ['d'], ['да'], ['twodigit'], [], []]
    """
    match = _WORDS.fullmatch(text)
    if match is None:
        return frozenset()
    wrapped = match["wrapped"] is not None
    parts = [part.strip(" ().!?\"'") for part in _LIST.split(match["wrapped"] if wrapped else match["bare"])]
    parts = [part for part in parts if part]
    if not parts or not all(map(_is_word, parts)):
        return frozenset()
    if not (wrapped or all(_is_bare_word(part, short) for part in parts)):
        return frozenset()
    return frozenset(_WITHIN_WORDS.sub("", part).casefold() for part in parts)


def _is_word(part: str) -> bool:
    return part[0].isalpha() and all(unicodedata.category(c)[0] in "LM" or c in " .'-" for c in part)


def _is_bare_word(part: str, short: bool) -> bool:
    if short or len(part) == 1 or not part.isascii():
        return part.isalpha() and (short or not part.isascii() or part in "ABCDEFGH")
    if part in ("no", "No"):
        return True
    signs, blanks = re.split("[-.']", part), part.split()
    return len(part) >= _BARE_WORD and min(map(len, blanks)) > 1 and (len(signs) == 1 or min(map(len, signs)) > 2)


def phrase(text: str) -> tuple[str, ...] | None:
    r"""Returns the words and numbers, in order, of a date, a name with a number, or a list of counted things.

    >>> phrase(r"\text{October 30}"), phrase("12 girls and 8 boys"), phrase("5 apples"), phrase("2x")
    (('october', '30'), ('12', 'girls', '8', 'boys'), None, None)
    """
    text = unwrapped(text)
    if not _PHRASE.fullmatch(text):
        return None
    found = [token.casefold() for token in _TOKENS.findall(text) if token not in ("and", "the", "of")]
    numbers = [token for token in found if token[0].isdigit()]
    names = [token for token in found if not token[0].isdigit()]
    if not numbers or not any(len(name) >= _BARE_WORD for name in names):
        return None
    return tuple(found) if len(numbers) > 1 or not found[0][0].isdigit() else None


def counts(text: str) -> tuple[tuple[str, str | None], ...] | None:
    r"""Returns two or more counted units, such as 7 minutes and 5 seconds.

    >>> counts(r"7\text{ minutes, }5\text{ seconds}"), counts("7 minutes")
    ((('7', 'minute'), ('5', 'second')), None)
    """
    text, place, found = unwrapped(text), 0, []
    while place < len(text) and (match := _COUNT.match(text, place)):
        unit, number = canonical(match["unit"]), numeral(match["count"])
        if unit is None or number is None:
            return None
        found.append((str(number.value), unit))
        place = match.end()
    different = len({unit for _, unit in found}) == len(found) > 1
    return tuple(found) if different and place == len(text) else None


def clock(text: str) -> Clock | None:
    """Returns a time of day, written with minutes, a.m. or p.m.

    >>> clock("8 : 34"), clock(r"12:05\\text{ p.m.}"), clock("3:4"), clock("7:60"), clock("8")
    (Clock(time=(8, 34), half=None), Clock(time=(12, 5), half='p'), None, None, None)
    """
    match = _CLOCK.fullmatch(unwrapped(text))
    if match is None or (match["minute"] is None and match["half"] is None):
        return None
    time = tuple(int(match[name] or 0) for name in ("hour", "minute", "second") if match[name] or name == "minute")
    if time[0] > 24 or any(part > 59 for part in time[1:]):
        return None
    return Clock(time, match["half"].lower() if match["half"] else None)


def same_clock(answer: Clock, label: Clock) -> bool:
    """Compare two times. A missing a.m. or p.m. is treated like a missing unit; 15:30 is 3:30 p.m."""
    if answer.time == label.time:
        return None in (answer.half, label.half) or answer.half == label.half
    return (answer.half is None) != (label.half is None) and _of_day(answer) == _of_day(label)


def _of_day(clock: Clock) -> tuple[int, ...]:
    if clock.half is None:
        return clock.time
    return (clock.time[0] % 12 + (12 if clock.half == "p" else 0), *clock.time[1:])


def ratio(terms: list[str], text: str) -> list[str] | None:
    r"""Returns the terms of a ratio, given the parts of the text between colons.

    >>> ratio(["1", "2"], "1 : 2"), ratio([r"3 \text{ to } 4"], r"3 \text{ to } 4"), ratio(["x"], "x")
    (['1', '2'], ['3', '4'], None)
    """
    if to := _TO.fullmatch(text):
        return [to["a"], to["b"]]
    return terms if len(terms) > 1 and all(terms) else None


def may_be_scaled(terms: list[str], by: list[str] | None) -> bool:
    """Whether a label's ratio may be answered by a multiple of it, or by a fraction (`by` is None).

    A ratio with a zero has no other form. Text that may be a time of day is treated as one if the answer could be one
    as well, or if a ratio would have been reduced.
    """
    numbers = [numeral(term) for term in terms]
    if any(number is not None and number.value == 0 for number in numbers):
        return False
    if (time := clock(":".join(terms))) is None:
        return True
    if time.half is not None:
        return False
    return gcd(*map(int, terms)) == 1 and (by is None or clock(":".join(by)) is None)


def based(text: str) -> Based | None:
    r"""Returns a number that is written in a base, with capital digits and without leading zeros.

    >>> based("1011_2"), based(r"(2a)_{16}"), based(r"11_{\text{two}}"), based("x_1"), based("a_{12}"), based("12_1")
    (Based(digits='1011', base=2), Based(digits='2A', base=16), Based(digits='11', base=2), None, None, None)
    """
    match = _BASED.fullmatch(unwrapped(text))
    if match is None:
        return None
    written = match["base"] or match["base1"]
    base = int(written) if written.isdigit() else _NUMBER_WORDS.get(written, 0)
    if not 2 <= base <= 36 or not all(int(digit, 36) < base for digit in match["digits"]):
        return None
    return Based(match["digits"].upper().lstrip("0") or "0", base)


def same_based(answer: Based | str, label: Based | str) -> bool:
    """Compare numbers in a base. 11_2 and 11_3 differ. A missing base (a text) is treated like a missing unit."""
    digits = [
        side.digits if isinstance(side, Based) else side.replace(" ", "").upper().lstrip("0")
        for side in (answer, label)
    ]
    bases = [side.base for side in (answer, label) if isinstance(side, Based)]
    return digits[0] == digits[1] and len(set(bases)) == 1
