r"""Answers that are families of values, with a condition at the end: for every integer k, or modulo 7."""

import re

_CONDITION = re.compile(
    r"[,;]?\s*(?:\\text\s*\{\s*(?:where|for|with|for some|for any|for all)\s*(?:integers?)?\s*\}|where|for)?\s*"
    r"\(?\s*(?P<letter>[A-Za-z])\s*(?:\\in\s*(?P<set>\\mathbb\{[ZN]\}(?:\s*[\^_]\s*(?:\{?[+*0-9]\}?))?)"
    r"|\\text\s*\{\s*is an integer\s*\})\s*\)?$"
)
_MODULUS = re.compile(
    r"\s*(?:\\pmod|\(\s*\\?(?:b?mod|text\s*\{\s*mod\s*\}))\s*(?:\{(?P<braced>[^{}]+)\}|(?P<bare>[0-9a-z]+))\s*\)?$"
)


def split_condition(text: str) -> tuple[str, tuple[str, ...]]:
    r"""Returns the text without its condition, and the letter with its set, or the modulus, or ().

    >>> split_condition(r"2k\pi, k \in \mathbb{Z}"), split_condition(r"3 \pmod{7}")
    (('2k\\pi', ('k', '\\mathbb{Z}')), ('3', ('mod 7',)))
    """
    if (match := _CONDITION.search(text)) and match.start() > 0:
        return text[: match.start()].strip(), (match["letter"], match["set"] or r"\mathbb{Z}")
    if (match := _MODULUS.search(text)) and match.start() > 0:
        return text[: match.start()].strip(), ("mod " + (match["braced"] or match["bare"]).strip(),)
    return text, ()


def aligned(answer: str, label: str) -> tuple[str, str] | None:
    r"""Returns both texts without their conditions and with the label's letter, or None if the conditions differ.

    >>> aligned(r"2n\pi, n \in \mathbb{Z}", r"2k\pi, k \in \mathbb{Z}"), aligned(r"3 \pmod 5", r"3 \pmod 7")
    (('2k\\pi', '2k\\pi'), None)
    """
    (answer, ours), (label, theirs) = split_condition(answer), split_condition(label)
    if not ours or not theirs or ours == theirs:
        return answer, label
    if len(ours) == 1 or ours[1:] != theirs[1:] or _letter(theirs[0]).search(answer):
        return None
    return _letter(ours[0]).sub(theirs[0], answer), label


def _letter(letter: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])")
