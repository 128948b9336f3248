"""Divides a text at separators that are outside of all brackets."""

import re
from collections.abc import Iterator

# A command is one token, so that \{ is a bracket and \left does not end in the letter t.
_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|.", re.DOTALL)
_OPENING, _CLOSING = {"{", "(", "[", r"\{"}, {"}", ")", "]", r"\}"}


def tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Yields (token, its start, number of enclosing brackets). A bracket does not enclose itself."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in _CLOSING:
            depth -= 1
        yield token, match.start(), depth
        if token in _OPENING:
            depth += 1


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    r"""Returns the parts between separators at depth 0, stripped; one part if there is no separator.

    >>> split(r"(1, 2), f(3, 4)", re.compile(","))
    ['(1, 2)', 'f(3, 4)']
    """
    if not separator.search(text):
        return [text.strip()]
    parts, start = [], 0
    outside = {place for _, place, depth in tokens(text) if depth == 0}
    for match in separator.finditer(text):
        if match.start() in outside and match.start() >= start:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    return [*parts, text[start:].strip()]


def enclosed(text: str) -> tuple[str, str, str] | None:
    r"""Returns (opening, inside, closing) if one pair of brackets, of any kinds, encloses the whole text.

    >>> enclosed(r"\{1, 2\}"), enclosed("(1, 2]"), enclosed("(1)(2)")
    (('\\{', '1, 2', '\\}'), ('(', '1, 2', ']'), None)
    """
    found = list(tokens(text))
    if len(found) < 2 or found[0][0] not in _OPENING or found[-1][0] not in _CLOSING:
        return None
    if any(depth <= 0 for _, _, depth in found[1:-1]) or found[-1][2] != 0:
        return None
    return found[0][0], text[len(found[0][0]) : found[-1][1]].strip(), found[-1][0]
