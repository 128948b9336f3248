r"""Replaces non-ASCII characters by TeX: √2, ½, x², ∞, full-width punctuation, single Greek letters.

Digits of other scripts are not numbers and are not changed, and neither are words.
"""

import re
import unicodedata

_MEANT = {
    "-": "−‒–—－", "+": "＋", "=": "＝", "<": "＜", ">": "＞", "/": "／⁄∕", "*": "＊∗", "^": "＾", "_": "＿", "%": "％",
    "$": "＄", "(": "（⟨〈", ")": "）⟩〉", "[": "［【〔", "]": "］】〕", r"\{": "｛", r"\}": "｝", "|": "｜∣",
    ",": "，、", ";": "；", ":": "：∶", ".": "．。", "'": "′’", "''": "″", '"': "“”„«»",
    r"\times ": "×✕", r"\div ": "÷", r"\cdot ": "·⋅∙•", r"\pm ": "±", r"\mp ": "∓",
    r"\ne ": "≠", r"\le ": "≤≦⩽", r"\ge ": "≥≧⩾", r"\approx ": "≈", r"\infty ": "∞",
    r"\cup ": "∪", r"\cap ": "∩", r"\setminus ": "∖", r"\in ": "∈", r"\notin ": "∉", r"\emptyset ": "∅",
    r"\mathbb{R}": "ℝ", r"\mathbb{Z}": "ℤ", r"\mathbb{N}": "ℕ", r"\mathbb{Q}": "ℚ", r"\mathbb{C}": "ℂ",
    r"\lfloor ": "⌊", r"\rfloor ": "⌋", r"\lceil ": "⌈", r"\rceil ": "⌉",
    r"^\circ ": "°º˚", r"\ldots ": "…", r"\sqrt[3]": "∛", r"\sqrt[4]": "∜",
    "": "\u200b\u200c\u200d\u2060\ufeff\u00ad",
    " ": "\t\n\r\xa0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
}  # fmt: skip
_FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5),
    "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
    "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip
_TABLE = str.maketrans(
    {character: plain for plain, characters in _MEANT.items() for character in characters}
    | {character: rf"\frac{{{p}}}{{{q}}}" for character, (p, q) in _FRACTIONS.items()}
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ"
_ON_THE_LINE = str.maketrans(_RAISED + _LOWERED, "0123456789+-()ni" * 2)
_SCRIPTS = re.compile(f"[{_RAISED}]+|[{_LOWERED}]+")
_GREEK = re.compile("(?<![\u0370-\u03ff\u1f00-\u1fff])[α-ωΑ-Ω](?![\u0370-\u03ff\u1f00-\u1fff])")
_CIRCLED = re.compile(r"[①-⑳](?:[\s,]*[①-⑳])*")
_ROOT_SIGN = re.compile(r"√\s*(?P<digits>[0-9]+(?:\.[0-9]+)?)?")


def as_tex(text: str) -> str:
    r"""Returns the text with TeX for each character that has an equivalent.

    >>> as_tex("3½ ≤ x²"), as_tex("2πr"), as_tex("√10"), as_tex("①③"), as_tex("（x，∞）"), as_tex("επί")
    ('3\\frac{1}{2} \\le  x^{2}', '2\\pi r', '\\sqrt{10}', '1, 3', '(x,\\infty )', 'επί')
    """
    text = unicodedata.normalize("NFC", text).translate(_TABLE)
    text = _SCRIPTS.sub(_on_the_line, text)
    text = _CIRCLED.sub(lambda match: ", ".join(str(ord(c) - ord("①") + 1) for c in match.group() if c >= "①"), text)
    text = _ROOT_SIGN.sub(lambda match: rf"\sqrt{{{match['digits']}}}" if match["digits"] else r"\sqrt ", text)
    return _GREEK.sub(_greek_command, text)


def _on_the_line(match: re.Match[str]) -> str:
    written = match.group()
    return f"{'^' if written[0] in _RAISED else '_'}{{{written.translate(_ON_THE_LINE)}}}"


def _greek_command(match: re.Match[str]) -> str:
    r"""Returns `\alpha ` for α. Except for lambda, Unicode's names are those of TeX."""
    name = unicodedata.name(match.group()).rsplit(" ", 1)[-1].lower().replace("lamda", "lambda")
    return f"\\{name.capitalize() if match.group().isupper() else name} "
