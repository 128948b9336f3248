r"""One spelling of TeX for the many that people and models use: characters, spacing, brackets, synonyms of commands.

Nothing here changes what a text means to a reader; what is left is what the other modules know how to read. Digits stay
as they are: only ASCII digits are numbers.
"""

import re
import unicodedata

from r1zero.reward.arguments import braced

_CHARACTERS = {
    "-": "−‒–—－", "+": "＋", "=": "＝", "<": "＜", ">": "＞", "/": "／⁄∕", "*": "＊∗", "^": "＾", "_": "＿", "%": "％", "$": "＄",
    "(": "（⟨〈", ")": "）⟩〉", "[": "［【〔", "]": "］】〕", r"\{": "｛", r"\}": "｝", "|": "｜∣", ",": "，、", ";": "；", ":": "：∶", ".": "．。",
    "'": "′’", "''": "″", '"': "“”„«»", r"\times ": "×✕", r"\div ": "÷", r"\cdot ": "·⋅∙•", r"\pm ": "±", r"\mp ": "∓", r"\ne ": "≠", r"\le ": "≤≦⩽",
    r"\ge ": "≥≧⩾", r"\approx ": "≈", r"\infty ": "∞", r"\cup ": "∪", r"\cap ": "∩", r"\setminus ": "∖", r"\in ": "∈", r"\notin ": "∉",
    r"\emptyset ": "∅", r"\mathbb{R}": "ℝ", r"\mathbb{Z}": "ℤ", r"\mathbb{N}": "ℕ", r"\mathbb{Q}": "ℚ", r"\mathbb{C}": "ℂ",
    r"^\circ ": "°º˚", r"\ldots ": "…", r"\sqrt[3]": "∛", r"\sqrt[4]": "∜", "": "\u200b\u200c\u200d\u2060\ufeff\u00ad",
    " ": "\t\n\r\xa0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
}  # fmt: skip
_FRACTIONS = {"½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5),
              "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8), "⅑": (1, 9), "⅒": (1, 10)}  # fmt: skip
_TABLE = str.maketrans(
    {character: plain for plain, characters in _CHARACTERS.items() for character in characters}
    | {character: rf"\frac{{{p}}}{{{q}}}" for character, (p, q) in _FRACTIONS.items()}
)
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ"
_ON_THE_LINE = str.maketrans(_RAISED + _LOWERED, "0123456789+-()ni" * 2)
_SCRIPTS = re.compile(f"[{_RAISED}]+|[{_LOWERED}]+")
_GREEK = re.compile("(?<![\u0370-\u03ff\u1f00-\u1fff])[α-ωΑ-Ω](?![\u0370-\u03ff\u1f00-\u1fff])")
_CIRCLED = re.compile(r"[①-⑳](?:[\s,]*[①-⑳])*")
_ROOT_SIGN = re.compile(r"√\s*(?P<digits>[0-9]+(?:\.[0-9]+)?)?")

_DIGIT_GROUPS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:(?:\{,\}|,\\!|\\[,;: ]|~)[0-9]{3})+(?![0-9])")
_NOT_DIGITS = re.compile(r"[^0-9]+")
# A line break of TeX is consumed first, so that its second backslash and what follows it are no command.
_SPACING = re.compile(
    r"(?P<newline>\\\\)(?:\[[^][]*\])?|(?P<none>\\!|\\negthinspace(?![A-Za-z]))|\\[,;:> ()]|~|\\[][]|\\hspace\*?\s*\{[^{}]*\}"
    r"|\\(?:q?quad|enspace|thinspace|medspace|thickspace|hfill)(?![A-Za-z])|\\[hv]?phantom\s*(?:\{[^{}]*\}|.)"
)
_STYLE = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|tiny|small|footnotesize|normalsize|large|Large|boldmath|limits|nolimits"
    r"|m?left|m?right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*(?:(?<=left)\.|(?<=right)\.)?"
)
_OLD_FONT = re.compile(r"\{\s*\\(?:rm|bf|it|sf|tt)(?![A-Za-z])\s*([^{}]*)\}")
_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|normal|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|textnormal|boldsymbol|bm)\s*\{"
)
_TEXT_IN_BRACES = re.compile(r"(?<![A-Za-z_^}])\{\s*(\\text\{[^{}]*\})\s*\}")
# R, Z, N, Q stand for sets of numbers in blackboard bold, in bold, and after "element of" in any font.
_BLACKBOARD = re.compile(
    r"\\(?:mathbb|Bbb)\s*(?:\{\s*)?(?P<a>[RZNQC])(?:\s*\})?|\\(?:mathbf|bm|boldsymbol)\s*(?:\{\s*(?P<b>[RZNQ])\s*\}|(?P<c>[RZNQ]))"
    r"|\\in\s*(?:\\[a-z]+\s*\{\s*)?(?P<d>[RZNQ])(?![A-Za-z])(?:\s*\})?"
)
_SIGN_IN_BRACES = re.compile(r"\{\s*([-+:;])\s*\}")
_POWER_IN_TEXT = re.compile(r"(\\text\{[^{}]*\^)\{(-?[0-9])\}(?=[^{}]*\})")
# ]1, 2[ is (1, 2), as French schools write it; U between brackets is a union.
_OUTWARD = re.compile(r"(?P<left>[][])(?P<ends>[^][(),;]+[,;][^][(),;]+)(?P<right>[][])")
_UNION = re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])")
_COMBINATIONS = re.compile(r"(?:\\text\{\s*C\s*\}|(?<![A-Za-z\\])C)\s*_\s*\{?([0-9]+)\}?\s*\^\s*\{?([0-9]+)\}?")
_CHOOSE = re.compile(r"\{\s*([^{}]*?)\s*\\choose\s*([^{}]*?)\s*\}")
_LETTER = re.compile(r"\\(?:text|operatorname)\s*\{\s*([ieIE])\s*\}")
_CONNECTIVE = re.compile(r"\s*,?\s*\\text\{\s*,?\s*(and|or)\s*\}\s*|\\text\{\s*(?P<comma>,)\s*(?:and|or)?\s*\}", re.IGNORECASE)
_SYNONYMS = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom", "tbinom": r"\binom", "leqslant": r"\le", "leq": r"\le",
    "geqslant": r"\ge", "geq": r"\ge", "neq": r"\ne", "lt": "<", "gt": ">", "varnothing": r"\emptyset", "langle": "(", "rangle": ")",
    "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "colon": ":",
    "infin": r"\infty", "degree": r"^\circ", "textdegree": r"^\circ", "land": " and ", "wedge": " and ", "lor": " or ", "vee": " or ",
    "ast": "*", "tg": r"\tan", "ctg": r"\cot", "arctg": r"\arctan", "lg": r"\log", "textdollar": r"\$", "backslash": r"\setminus",
    "pounds": "£", "euro": "€", "R": r"\mathbb{R}", "Z": r"\mathbb{Z}", "N": r"\mathbb{N}", "Q": r"\mathbb{Q}", "thinspace": " ",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_INFINITY = re.compile(r"\\text\s*\{\s*(?:positive |plus )?infinity\s*\}|(?<![A-Za-z\\])infinity(?![A-Za-z])")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))\s*")
_ASCII_RELATIONS = re.compile(r"<=|>=")
_ANGLES = re.compile(r"\\(?:left\s*<|right\s*>)")


def plain(text: str) -> str:
    r"""The text in the one spelling that is read.

    >>> plain(r"10~\mathrm {cm}"), plain(r"12\ \%"), plain("３½ ≤ x"), plain("2√3")
    ('10 \\text{cm}', '12 \\%', '３\\frac{1}{2} \\le  x', '2\\sqrt{3}')
    >>> plain(r"\left( 1\,234,\; \tfrac12 \right]"), plain(r"2 \text { or } 3"), plain("2πr²")
    ('( 1234,  \\frac{1}{2} ]', '2 or 3', '2\\pi r^{2}')
    """
    if not text.isascii():
        text = _ascii(unicodedata.normalize("NFC", text))
    text = _DIGIT_GROUPS.sub(lambda match: _NOT_DIGITS.sub("", match.group()), text)
    text = _SPACING.sub(_space, text)
    if "\\" in text:
        text = _ANGLES.sub(lambda match: "(" if "<" in match.group() else ")", text)
        text = _BLACKBOARD.sub(_number_set, text)
        text = _OLD_FONT.sub(r"\\text{\1}", _STYLE.sub("", text))
        text = _COMMAND.sub(lambda match: _SYNONYMS.get(match[1], match.group()), _FONT.sub(r"\\text{", text))
        text = _TEXT_IN_BRACES.sub(r"\1", text)
        text = _POWER_IN_TEXT.sub(r"\1\2", _LETTER.sub(r"\1", text))
        text = _CONNECTIVE.sub(lambda match: ", " if match["comma"] else f" {match[1].lower()} ", text)
        text = _DEGREE.sub(r"^\\circ ", text)
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    text = _INFINITY.sub(r"\\infty ", text)
    text = _COMBINATIONS.sub(r"\\binom{\1}{\2}", _UNION.sub(r" \\cup ", _OUTWARD.sub(_inward, text)))
    text = _ASCII_RELATIONS.sub(lambda match: r"\le " if "<" in match.group() else r"\ge ", text)
    return braced(_SIGN_IN_BRACES.sub(r"\1", text)).strip()


def _ascii(text: str) -> str:
    text = text.translate(_TABLE)
    text = _SCRIPTS.sub(
        lambda match: ("^" if match.group()[0] in _RAISED else "_") + "{" + match.group().translate(_ON_THE_LINE) + "}", text
    )
    text = _CIRCLED.sub(lambda match: ", ".join(str(ord(c) - ord("①") + 1) for c in match.group() if c >= "①"), text)
    text = _ROOT_SIGN.sub(lambda match: rf"\sqrt{{{match['digits']}}}" if match["digits"] else r"\sqrt ", text)
    return _GREEK.sub(_greek_command, text)


def _greek_command(match: re.Match[str]) -> str:
    """`\\alpha ` for α: Unicode's names are TeX's, but for lambda; where TeX has no capital it is a Latin letter."""
    name = unicodedata.name(match.group(), "").rsplit(" ", 1)[-1].lower().replace("lamda", "lambda")
    return f"\\{name.capitalize() if match.group().isupper() else name} "


def _space(match: re.Match[str]) -> str:
    return r"\\" if match["newline"] else "" if match["none"] else " "


def _number_set(match: re.Match[str]) -> str:
    letter = next(filter(None, match.groups()))
    return (r"\in " if match["d"] else "") + rf"\mathbb{{{letter}}}"


def _inward(match: re.Match[str]) -> str:
    left, right = match["left"], match["right"]
    return ("(" if left == "]" else left) + match["ends"] + (")" if right == "[" else right)
