r"""Finds the boxed answers of a text in one pass, without a regular expression that can backtrack."""

import re
from typing import NamedTuple

# A box opens at \boxed{ (white space in between is allowed, as in TeX). Any other backslash escapes the character after
# it, so that the braces of \{1, 2\} are not counted.
_TOKEN = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_OPENING = re.compile(r"\\boxed\s*\{")


class Box(NamedTuple):
    """A boxed answer and its position in the text."""

    start: int  # position of the backslash
    stop: int  # position after the closing brace
    content: str


def last_box(text: str) -> Box | None:
    r"""Returns the last box of the text, the outer one if boxes are nested, or None.

    If the last box is never closed there is no answer at all: a text that is cut off inside its last box has not
    answered, whatever came before.

    >>> last_box(r"so \boxed{3}, no: \boxed{\frac{1}{2}}").content
    '\\frac{1}{2}'
    >>> last_box(r"\boxed{3} or \boxed{4") is None
    True
    """
    if "\\boxed" not in text:
        return None
    first = _OPENING.search(text)
    if first is None:
        return None
    closed: tuple[int, int, int] | None = None
    braces: list[tuple[int, int] | None] = []  # (start, start of content) of an open box, None for a plain brace
    for token in _TOKEN.finditer(text, first.start()):
        word = token.group()
        if word == "{":
            braces.append(None)
        elif word == "}":
            opened = braces.pop() if braces else None
            if opened is not None:
                closed = (opened[0], opened[1], token.start())
        elif len(word) > 2:
            braces.append((token.start(), token.end()))
    if closed is None or any(opened is not None and opened[0] > closed[2] for opened in braces):
        return None
    start, inner, stop = closed
    return Box(start, stop + 1, text[inner:stop])
