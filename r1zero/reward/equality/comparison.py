r"""Compares two texts in the single spelling, by kind, down to numbers, words and expressions."""

import re

from r1zero.reward.equality import families, leaves, notation, realsets, relations
from r1zero.reward.equality.meaning import (
    Equation,
    Grid,
    Inequality,
    Leaf,
    Listing,
    Meaning,
    Ordered,
    Region,
    is_name,
    read,
)
from r1zero.reward.equality.numerals import Numeral, numeral
from r1zero.reward.equality.numerals import same as same_numeral
from r1zero.reward.equality.quantities import Quantity, quantity
from r1zero.reward.equality.units import same_unit

_POINT = re.compile(r"^[A-Z]'?\s*(?=\(.*,.*\)$)")
_SPACE_AFTER_COMMA = re.compile(r",\s+(?=[0-9])")
_DIGITS_AND_COMMAS = re.compile(r"[0-9]+(?:,\s*[0-9]+)+")


def same(answer: str, label: str) -> bool:
    """Whether the answer means the same as the label. False if that cannot be decided."""
    if answer == label or _same_digits(answer, label):
        return True
    if (verdict := _same_words(answer, label)) is not None:
        return verdict
    family = families.aligned(answer, label)
    if family is None:
        return False
    answer, label = family
    return _same_meaning(read(answer), read(label))


def _same_digits(answer: str, label: str) -> bool:
    """Whether 125, 875, 000 is 125,875,000: they have the same digits, be it a list or a number."""
    texts = [_SPACE_AFTER_COMMA.sub(",", text) for text in (answer, label)]
    return texts[0] == texts[1] and _DIGITS_AND_COMMAS.fullmatch(label) is not None


def _same_words(answer: str, label: str) -> bool | None:
    """Compare words, counted units, or words with numbers. Returns None if one text may be an expression."""
    ours, theirs = notation.words(answer), notation.words(label)
    if (ours or theirs) and not len(answer) == len(label) == 1:  # R and r are different letters
        ours, theirs = ours or notation.words(answer, short=True), theirs or notation.words(label, short=True)
        if ours and theirs:
            return ours == theirs
    for kind in (notation.counts, notation.phrase):
        if (a := kind(answer)) is not None and (b := kind(label)) is not None:
            return a == b
    return None


def _same_meaning(answer: Meaning, label: Meaning) -> bool:
    answer, label = _unwrapped(answer, label), _unwrapped(label, answer)
    if isinstance(answer, Listing) or isinstance(label, Listing):
        return _same_listing(answer, label)
    if isinstance(answer, Equation) or isinstance(label, Equation):
        return _same_equation(answer, label)
    if isinstance(answer, Ordered) and isinstance(label, Ordered):
        return _same_ordered(answer, label)
    if isinstance(answer, Region | Ordered) and isinstance(label, Region | Ordered):
        return _same_region(_region(answer), _region(label))
    if isinstance(answer, Inequality) and isinstance(label, Inequality):
        return _same_inequality(answer, label)
    if isinstance(answer, Grid) and isinstance(label, Grid):
        return list(map(len, answer.rows)) == list(map(len, label.rows)) and all(
            same(a, b)
            for ours, theirs in zip(answer.rows, label.rows, strict=True)
            for a, b in zip(ours, theirs, strict=True)
        )
    if not (isinstance(answer, Leaf) and isinstance(label, Leaf)):
        return _same_uneven(answer, label)
    verdict = leaves.same_notation(answer.text, label.text)
    return _same_quantity(quantity(answer.text), quantity(label.text)) if verdict is None else verdict


def _unwrapped(side: Meaning, other: Meaning) -> Meaning:
    r"""Returns the list in x \in {1, 2} if it is compared with a list; otherwise the side itself."""
    if not (isinstance(side, Equation) and isinstance(other, Listing)):
        return side
    value = relations.value_of(side)
    return value_read if value is not None and isinstance(value_read := read(value), Listing) else side


def _same_uneven(answer: Meaning, label: Meaning) -> bool:
    """Compare different kinds: a matrix with a multiple of one, and a tuple with one that has a unit or a point's
    name."""
    if isinstance(answer, Grid | Leaf) and isinstance(label, Grid | Leaf) and type(answer) is not type(label):
        return leaves.same_expression(answer.text, label.text)
    bare = [
        read(_POINT.sub("", quantity(side.text).body)) if isinstance(side, Leaf) else side for side in (answer, label)
    ]
    return bare != [answer, label] and not all(isinstance(side, Leaf) for side in bare) and _same_meaning(*bare)


def _same_listing(answer: Meaning, label: Meaning) -> bool:
    ours, theirs = _parts(answer), _parts(label)
    if ours is None or theirs is None:
        listing, other = (answer, label) if isinstance(answer, Listing) else (label, answer)
        assert isinstance(listing, Listing)  # at least one of the two is a list
        if isinstance(other, Ordered):
            return _tuple_as_listing(other, listing, label_is_tuple=other is label)
        return isinstance(other, Region) and _same_region(_region(listing), other)
    if len(ours) != len(theirs) or _is_set_of_sets(answer) != _is_set_of_sets(label):
        return False
    names = [_names(parts) for parts in (ours, theirs)]
    unnamed = [not any(side) for side in names]
    if not all(unnamed) and not _names_agree(*names):
        return False
    if not any(unnamed) and len(set(names[1])) > 1 and set(names[0]) == set(names[1]):
        return all(same(ours[names[0].index(name)], part) for name, part in zip(names[1], theirs, strict=True))
    values = [[_value(part) for part in parts] for parts in (ours, theirs)]
    return _matched(*values)


def _parts(side: Meaning) -> tuple[str, ...] | None:
    """Returns the elements of a list. A single value is a list of one, unless it is itself a set."""
    if isinstance(side, Listing):
        return side.parts
    return (side.text,) if isinstance(side, Leaf) else None


def _is_set_of_sets(side: Meaning) -> bool:
    return (
        isinstance(side, Listing)
        and side.braces
        and any(isinstance(read(part), Listing | Region) for part in side.parts)
    )


def _names(parts: tuple[str, ...]) -> list[str | None]:
    """Returns the name of each element's variable. If only the first has a name, it applies to all."""
    names = [relations.name_of(m) if isinstance(m := read(part), Equation) else None for part in parts]
    return names[:1] * len(names) if not any(names[1:]) else names


def _names_agree(ours: list[str | None], theirs: list[str | None]) -> bool:
    """Whether the named values can be compared as values of one letter, or name by name."""
    named = [side for side in (ours, theirs) if any(side)]
    if any(None in side for side in named):
        return False
    if len(named) == 2 and set(ours) == set(theirs):
        return True
    bases = [relations.base_names([name for name in side if name is not None]) for side in named]
    return all(len(base) == 1 for base in bases) and len(set.union(*bases)) == 1


def _value(part: str) -> str:
    meaning = read(part)
    return (relations.value_of(meaning) or part) if isinstance(meaning, Equation) else part


def _matched(ours: list[str], theirs: list[str]) -> bool:
    """Whether each element of one list equals an element of the other, none being used twice."""
    left = list(ours)
    for part in theirs:
        place = next((k for k, other in enumerate(left) if same(other, part)), None)
        if place is None:
            return False
        del left[place]
    return True


def _tuple_as_listing(point: Ordered, listing: Listing, label_is_tuple: bool) -> bool:
    """Compare a tuple with a list. The label (1, 2) may be answered by 1, 2, and x = 1, y = 2 by (1, 2)."""
    if listing.braces or point.opening + point.closing != "()" or len(point.parts) != len(listing.parts):
        return False
    names = _names(listing.parts)
    known = [name for name in names if name is not None]
    if (any(names) and (None in names or known != sorted(set(known)))) or (not any(names) and not label_is_tuple):
        return False
    if any(names) and not label_is_tuple and len(relations.base_names(known)) == 1:
        return False  # these are two values of one letter
    pairs = zip(map(_value, listing.parts), point.parts, strict=True)
    return all(same(a, b) if label_is_tuple else same(b, a) for a, b in pairs)


def _same_equation(answer: Meaning, label: Meaning) -> bool:
    if not isinstance(label, Equation):
        value = relations.value_of(answer) if isinstance(answer, Equation) else None
        return value is not None and _same_meaning(read(value), label)
    name = relations.name_of(label)
    if not isinstance(answer, Equation):
        value = (
            relations.value_of(label) if name or (not is_name(label.sides[0]) and _is_tuple(label.sides[0])) else None
        )
        if value is None:
            return False
        return _same_meaning(answer, read(value)) and _about(answer, name)
    theirs = relations.value_of(label)
    ours = relations.value_of(answer)
    if theirs is not None and ours is not None and _same_name(answer, label):
        return same(ours, theirs)
    if name and theirs is not None and _is_constant(theirs):
        return False  # x = 2 is a solution, but 2x = 4 is not
    return relations.same_equation(label, answer)


def _about(answer: Meaning, name: str | None) -> bool:
    return not isinstance(answer, Region) or answer.name in (None, name)


def _same_name(answer: Equation, label: Equation) -> bool:
    ours, theirs = relations.name_of(answer), relations.name_of(label)
    if ours is None and theirs is None:
        return answer.sides[0].replace(" ", "") == label.sides[0].replace(" ", "")
    return ours == theirs


def _is_tuple(side: str) -> bool:
    return isinstance(read(side), Ordered)


def _is_constant(text: str) -> bool:
    tree = leaves.tree_of(text)
    return tree is not None and not tree.free_symbols


def _same_ordered(answer: Ordered, label: Ordered) -> bool:
    return (
        answer.opening + answer.closing == label.opening + label.closing
        and len(answer.parts) == len(label.parts)
        and all(same(a, b) for a, b in zip(answer.parts, label.parts, strict=True))
    )


def _region(side: Region | Ordered | Listing) -> Region | None:
    if isinstance(side, Region):
        return side
    opening, closing = (side.opening, side.closing) if isinstance(side, Ordered) else (r"\{", r"\}")
    points = realsets.from_parts(opening, side.parts, closing)
    return Region(None, points) if points is not None else None


def _same_region(answer: Region | None, label: Region | None) -> bool:
    """Compare regions. The name of the elements may be missing on one side."""
    if answer is None or label is None or (answer.name and label.name and answer.name != label.name):
        return False
    return realsets.same_set(answer.points, label.points)


def _same_inequality(answer: Inequality, label: Inequality) -> bool:
    if answer.signs == label.signs and all(same(a, b) for a, b in zip(answer.sides, label.sides, strict=True)):
        return True
    return relations.same_inequality(label, answer)


def _same_quantity(answer: Quantity, label: Quantity) -> bool:
    if not same_unit(answer.unit, label.unit):
        return False
    if answer.percent == label.percent:
        return _same_body(answer.body, label.body)
    percent, other = (answer, label) if answer.percent else (label, answer)
    if other.unit is not None:
        return False
    hundredth, value = _hundredth(percent.body), numeral(other.body)
    if hundredth is not None and value is not None and same_numeral(hundredth, value):
        return True
    if value is not None and value.value.denominator != 1 and abs(value.value) < 1:
        return False  # 0.5 is 50 %, not 0.5 %
    return _same_body(answer.body, label.body)


def _same_body(answer: str, label: str) -> bool:
    """Compare what remains without the unit, which may be a tuple."""
    kinds = read(answer), read(label)
    if all(isinstance(kind, Leaf) for kind in kinds):
        return leaves.same_expression(answer, label)
    return _same_meaning(*kinds)


def _hundredth(body: str) -> Numeral | None:
    value = numeral(body)
    return Numeral(value.value / 100, value.rounded) if value is not None else None


def is_read(text: str) -> bool:
    """Whether all parts of the text are understood as more than their letters."""
    if notation.words(text) or notation.phrase(text) or notation.counts(text):
        return True
    meaning = read(families.split_condition(text)[0])
    if isinstance(meaning, Region):
        return True
    if isinstance(meaning, Leaf):
        body = quantity(meaning.text).body
        return leaves.is_read(meaning.text) or (body != meaning.text and is_read(body))
    if isinstance(meaning, Grid):
        return all(is_read(cell) for row in meaning.rows for cell in row)
    return all(map(is_read, meaning.sides if isinstance(meaning, Equation | Inequality) else meaning.parts))
